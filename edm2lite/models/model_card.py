"""The model card of a model file: what the weights are an average of, and how well."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.messages import one_line

_SHOWN = 12  # snapshots in the table; the file names all of them


def model_card(metadata: Mapping[str, str], licence: str, name: str) -> str:
    """Markdown with the Hub's front matter.

    Args:
        metadata: Of the model file.
        licence: Of the weights, as the Hub calls it.
        name: Of the model, or of its repository.
    """
    config = PrecondConfig.from_json(metadata["model"])
    parts = [
        f"---\nlicense: {licence}\nlibrary_name: edm2lite\ntags:\n- edm2\n- diffusion\n---",
        f"# {_text(name)}",
        _network(config, metadata),
        "## Weights",
        _table(["", ""], _facts(metadata)),
        *_inputs(metadata),
        "## Use",
        _use(config, name),
    ]
    return "\n\n".join(parts) + "\n"


def _network(config: PrecondConfig, metadata: Mapping[str, str]) -> str:
    shape = config.backbone
    with torch.device("meta"):
        count = sum(p.numel() for p in Precond(config).parameters())
    size = f"{shape.img_resolution} x {shape.img_resolution} x {shape.img_channels}"
    told = " and ".join(c.describe() for c in shape.conditions)
    told = f"conditioned on {told}" if told else "unconditional"
    encoder = metadata.get("encoder")
    pixels = f"\n\nFrom images to what the network sees: `{_text(encoder)}`." if encoder else ""
    return (
        "A denoiser with the magnitude-preserving network of EDM2 (config G,"
        f" [arXiv 2312.02696](https://arxiv.org/abs/2312.02696)): {count / 1e6:.3f} M parameters,"
        f" {size}, {told}, computes in {config.dtype}.{pixels}"
    )


def _facts(metadata: Mapping[str, str]) -> list[list[str]]:
    """Rows of what is known of the average."""
    length = metadata.get("sigma_rel", metadata.get("average", "not recorded"))
    error = metadata.get("predicted_error")
    values = {
        "EMA length (sigma_rel)": length,
        "exponent (gamma)": metadata.get("gamma"),
        "profile": metadata.get("profile"),
        "training images (nimg)": metadata.get("nimg"),
        "predicted error / norm of the weights": error and f"{float(error):.1e}",
        "solver": metadata.get("solver"),
        "run": metadata.get("run"),
        "made from": metadata.get("source"),
        "xxh3-128 of that": metadata.get("source_digest"),
        "xxh3-128 of the weights": metadata.get("digest"),
    }
    return [[title, f"`{_text(value)}`"] for title, value in values.items() if value is not None]


def _inputs(metadata: Mapping[str, str]) -> list[str]:
    """The snapshots that the weights were rebuilt from, those with the largest coefficients."""
    if "inputs" not in metadata:
        return []
    try:
        inputs = [
            (_text(entry["file"]), _text(entry["digest"]), float(entry["coefficient"]))
            for entry in json.loads(metadata["inputs"])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "inputs in the metadata must list files with digests and coefficients, and do not"
            f" ({type(error).__name__}); the file was altered"
        ) from error
    shown = sorted(inputs, key=lambda entry: -abs(entry[2]))[:_SHOWN]
    rows = [[f"`{file}`", f"`{digest}`", f"{x:+.6f}"] for file, digest, x in shown]
    total = sum(abs(x) for _, _, x in inputs)
    return [
        "## Rebuilt from",
        f"A weighted sum of {len(inputs)} snapshots; the coefficients sum to 1, their absolute"
        f" values to {total:.3f}. The metadata of the file has all of them"
        + (f"; the {_SHOWN} largest:" if len(inputs) > _SHOWN else ":"),
        _table(["snapshot", "xxh3-128", "coefficient"], rows),
    ]


def _use(config: PrecondConfig, name: str) -> str:
    told = ", conditioning" if config.backbone.conditions else ""
    return f"""```python
from edm2lite.models.hub import from_pretrained

model = from_pretrained({name!r})  # or the path of a folder with these files
D_x = model.net(x, sigma{told})  # x: clean images plus noise of standard deviation sigma
```

From the shell, with a folder of these files:
`edm2lite generate FOLDER --seeds 0-15 --out images`."""


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """In one line, and without what would end a cell of a table."""
    return one_line(value).replace("|", "/").replace("`", "'")
