"""The card of a model: what it is, which snapshots its weights average, and how exactly."""

from __future__ import annotations

import html
from collections.abc import Mapping

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.messages import one_line
from edm2lite.models.class_names import class_title, names_in_metadata
from edm2lite.network.conditions import ClassLabel, described
from edm2lite.strict_json import parse
from edm2lite.text.named import text_encoder_from_json

_SHOWN = 12  # snapshots in the table; the file names all of them


def model_card(metadata: Mapping[str, str], license: str, name: str) -> str:
    """The card of a model, Markdown with the front matter of the Hub.

    Args:
        metadata: Metadata of the model file.
        license: License of the weights, as the Hub calls it.
        name: Name of the model, or of its repository.

    Raises:
        ValueError: If the metadata does not describe one of our models.

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> metadata = {"model": PrecondConfig(backbone=unet).to_json(), "sigma_rel": "0.13"}
        >>> print(model_card(metadata, "apache-2.0", "digits")[:28])
        ---
        license: apache-2.0
        libr
    """
    config = PrecondConfig.from_json(metadata["model"])
    parts = [
        f"---\nlicense: {license}\nlibrary_name: edm2lite\ntags:\n- edm2\n- diffusion\n---",
        f"# {html.escape(_text(name), quote=False)}",
        _network(config, metadata),
        "## Weights",
        _table(["", ""], _facts(metadata)),
        *_classes(config, metadata, name),
        *_inputs(metadata),
        "## Use",
        _use(config, name, takes_prompts="text_encoder" in metadata),
    ]
    return "\n\n".join(parts) + "\n"


def _network(config: PrecondConfig, metadata: Mapping[str, str]) -> str:
    network = config.backbone
    module, is_foreign, _ = network.kind.partition(":")
    title = f"a network of the class `{_text(network.kind)}`" if is_foreign else network.title
    kind = f"A denoiser with {title}"
    size = f"{network.img_resolution} x {network.img_resolution} x {network.img_channels}"
    conditions = network.conditions
    told = f"conditioned on {described(conditions)}" if conditions else "unconditional"
    lines = [
        f"{kind}: {config.num_parameters() / 1e6:.3f} M parameters, {size}, {told}, computes in"
        f" {config.dtype}."
    ]
    if "encoder" in metadata:
        encoder = _text(metadata["encoder"])
        lines.append(f"Encoder between images and what the network sees: `{encoder}`.")
    if "text_encoder" in metadata:
        text = text_encoder_from_json(metadata["text_encoder"])
        lines.append(
            f"It is told prompts by a text encoder of the kind `{_text(text.kind)}`"
            f" (`{_text(text.source)}`, digest `{_text(text.digest)}`, at most {text.num_tokens}"
            " tokens)."
        )
    if is_foreign:
        lines.append(f"Loading it needs the module `{_text(module)}`, imported before.")
    return "\n\n".join(lines)


def _facts(metadata: Mapping[str, str]) -> list[list[str]]:
    """Rows with what is known about the average."""
    length = metadata.get("sigma_rel", metadata.get("average", "not recorded"))
    decay = metadata.get("decay")
    error = metadata.get("predicted_error")
    values = {
        "EMA length (sigma_rel)": None if decay else length,
        "emulated decay of the learning rate": decay,
        "exponent (gamma)": metadata.get("gamma"),
        "profile": metadata.get("profile"),
        "training images (nimg)": metadata.get("nimg"),
        "label dropout in training": metadata.get("label_dropout"),
        "predicted error / norm of the weights": error and f"{float(error):.1e}",
        "solver": metadata.get("solver"),
        "run": metadata.get("run"),
        "fine-tuned from": metadata.get("base"),
        "made from": metadata.get("source"),
        "xxh3-128 of the source": metadata.get("source_digest"),
        "xxh3-128 of the weights": metadata.get("digest"),
    }
    return [[title, f"`{_text(value)}`"] for title, value in values.items() if value is not None]


def _classes(config: PrecondConfig, metadata: Mapping[str, str], name: str) -> list[str]:
    """The names of the classes, if the model knows them."""
    labels = [c for c in config.backbone.conditions if isinstance(c, ClassLabel)]
    names = names_in_metadata(metadata, labels[0].num_classes, name) if labels else ()
    if not names:
        return []
    listed = ", ".join(f"{k} {_text(class_title(names, k))}" for k in range(len(names)))
    return ["## Classes", f"{html.escape(listed, quote=False)}."]


def _inputs(metadata: Mapping[str, str]) -> list[str]:
    """The snapshots from which the weights were rebuilt: those with the largest coefficients."""
    if "inputs" not in metadata:
        return []
    try:
        inputs = [
            (_text(entry["file"]), _text(entry["digest"]), float(entry["coefficient"]))
            for entry in parse(metadata["inputs"])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "inputs in the metadata must list files with digests and coefficients, found something"
            f" else ({type(error).__name__}); the file was altered"
        ) from error
    shown = sorted(inputs, key=lambda entry: -abs(entry[2]))[:_SHOWN]
    rows = [[f"`{file}`", f"`{digest}`", f"{x:+.6f}"] for file, digest, x in shown]
    total = sum(abs(x) for _, _, x in inputs)
    return [
        "## Rebuilt from",
        f"A weighted sum of {len(inputs)} snapshots; the coefficients sum to 1, their absolute"
        f" values to {total:.3f}. The metadata of the file lists all of them"
        + (f"; the {_SHOWN} largest:" if len(inputs) > _SHOWN else ":"),
        _table(["snapshot", "xxh3-128", "coefficient"], rows),
    ]


def _use(config: PrecondConfig, name: str, takes_prompts: bool) -> str:
    network = config.backbone
    told = ", conditioning" if network.conditions else ""
    module, is_foreign, _ = network.kind.partition(":")
    options = f" --plugin {module}" if is_foreign else ""
    if any(condition.is_required for condition in network.conditions):
        options += " --conditions DATASET"
    seeds = ' --prompt "..." --guidance 2' if takes_prompts else " --seeds 0-15"
    return f"""```python
from edm2lite.models import from_pretrained

model = from_pretrained({name!r})  # or the path of a folder with these files
D_x = model.net(x, sigma{told})  # x: clean images plus noise of standard deviation sigma
```

From the shell, with a folder of these files:
`edm2lite generate FOLDER{seeds}{options} --out images`."""


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """Text in one line, without the characters that would end a cell of a table."""
    return one_line(value).replace("|", "/").replace("`", "'")
