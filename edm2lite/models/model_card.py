"""The card of a model: what it is, which snapshots its weights average, and how exactly."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.messages import one_line
from edm2lite.models.class_names import class_title, names_in_metadata
from edm2lite.models.config_json import without_folders
from edm2lite.network.conditions import ClassLabel, described
from edm2lite.strict_json import parse
from edm2lite.text.named import text_encoder_from_json

PICTURE = "samples.png"
"""Name of the picture of samples beside the card."""

_SHOWN = 12  # snapshots in the table; the file names all of them


@dataclass(frozen=True)
class Samples:
    """A picture of generated images for the card.

    Attributes:
        picture: Content of a PNG file.
        words: Sentence on how the images were made.

    Example:
        >>> Samples(b"", "Seeds 0 to 15, 32 steps.").words
        'Seeds 0 to 15, 32 steps.'
    """

    picture: bytes
    words: str


@dataclass(frozen=True, kw_only=True)
class Background:
    """What is known about a model besides its file.

    Attributes:
        samples: Images that it generated.
        metrics: What was measured of it, each in words.
        training: Configuration of its training.

    Example:
        >>> Background(metrics=["FD 0.922 (95 % interval 0.59 to 1.255): 1000 images"]).training
    """

    samples: Samples | None = None
    metrics: Sequence[str] = ()
    training: Mapping[str, Any] | None = None


def model_card(
    metadata: Mapping[str, str],
    license: str,
    name: str,
    background: Background | None = None,
) -> str:
    """The card of a model, Markdown with the front matter of the Hub.

    Args:
        metadata: Metadata of the model file.
        license: License of the weights, as the Hub calls it.
        name: Name of the model, or of its repository.
        background: What is known besides. [default: nothing]

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
    config, known = PrecondConfig.from_json(metadata["model"]), background or Background()
    parts = [
        f"---\nlicense: {license}\nlibrary_name: edm2lite\npipeline_tag: {_task(config, metadata)}"
        "\ntags:\n- edm2\n- diffusion\n---",
        f"# {html.escape(_text(name), quote=False)}",
        *_samples(known.samples),
        _network(config, metadata),
        "## Use",
        _use(config, name, takes_prompts="text_encoder" in metadata),
        *_metrics(known.metrics),
        *_training(metadata, known.training),
        "## Weights",
        _table(["", ""], _facts(metadata)),
        *_classes(config, metadata, name),
        *_inputs(metadata),
        "## Limitations",
        _limitations(known),
    ]
    return "\n\n".join(parts) + "\n"


def _task(config: PrecondConfig, metadata: Mapping[str, str]) -> str:
    """The task by which the Hub lists a model."""
    if "text_encoder" in metadata:
        return "text-to-image"
    needs_image = any(c.is_required for c in config.backbone.conditions)
    return "image-to-image" if needs_image else "unconditional-image-generation"


def _samples(samples: Samples | None) -> list[str]:
    if samples is None:
        return []
    words = html.escape(_text(samples.words), quote=False)
    return [f"![Images that the model generated]({PICTURE})", words]


def _metrics(metrics: Sequence[str]) -> list[str]:
    """What was measured, with intervals."""
    if not metrics:
        return []
    lines = [f"- {html.escape(_text(text), quote=False)}" for text in metrics]
    return ["## Measured", "\n".join(lines)]


def _training(metadata: Mapping[str, str], training: Mapping[str, Any] | None) -> list[str]:
    """The data, and the configuration of the run."""
    parts = []
    if "data" in metadata:
        parts.append(f"Data: `{_text(metadata['data'].rstrip('/').rpartition('/')[2])}`.")
    if training is not None:
        text = yaml.safe_dump(dict(training), sort_keys=False, allow_unicode=True)
        fence = "`" * (3 + max(map(len, re.findall(r"`+", text)), default=0))
        parts += [
            "The configuration of the run, as `edm2lite train` takes it:",
            f"<details><summary>Configuration</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>",
        ]
    return ["## Training", *parts] if parts else []


def _limitations(known: Background) -> str:
    lines = [
        "It makes images like those that it was trained on, of the same size, and repeats what is"
        " one-sided or wrong in them.",
        "Nobody has checked whether it repeats single images of its training, or under which terms"
        " these may be used.",
    ]
    if not known.metrics:
        lines.append("No metric of it is recorded here.")
    return "\n".join(f"- {line}" for line in lines)


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
        encoder = re.sub(
            r'(?<=")(?:[^"\\]|\\.)*(?=")', lambda m: without_folders(m[0]), metadata["encoder"]
        )
        encoder = _text(encoder)
        lines.append(f"Encoder between images and what the network sees: `{encoder}`.")
    if "text_encoder" in metadata:
        text = text_encoder_from_json(metadata["text_encoder"])
        source = _text(without_folders(text.source))
        lines.append(
            f"It is told prompts by a text encoder of the kind `{_text(text.kind)}` (`{source}`,"
            f" digest `{_text(text.digest)}`, at most {text.num_tokens} tokens)."
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
        "made from": without_folders(metadata.get("source")),
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
    is_shown = any(condition.is_required for condition in network.conditions)
    options += " --conditions DATASET" if is_shown else ""
    seeds = ' --prompt "..." --guidance 2' if takes_prompts else " --seeds 0-15"
    has_classes = any(isinstance(c, ClassLabel) for c in network.conditions)
    how = 'prompts=["..."]' if takes_prompts else "range(16)"
    if is_shown:
        how += ', conditioning=edm2lite.open_dataset("DATASET")'
    elif has_classes and not takes_prompts:
        how += ', classes="all"'
    return f"""```python
import edm2lite

model = edm2lite.from_pretrained({name!r})  # or the path of a folder with these files
images = edm2lite.generate(model, {how})  # uint8 [N, C, H, W]
images.grid().save("images.png")
```

The denoiser itself is `model.net(x, sigma{told})`, where x is a clean image plus noise of standard
deviation sigma.

From the shell, with a folder of these files:
`edm2lite generate FOLDER{seeds}{options} --out images`."""


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """Text in one line, without the characters that would end a cell of a table."""
    return one_line(value).replace("|", "/").replace("`", "'")
