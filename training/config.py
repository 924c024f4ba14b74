"""RunConfig: everything that defines a training run, and its text form.

Values come from the dataclass defaults, then the YAML file, then ``--set a.b=c``. The classes are
plain dataclasses; pydantic checks and converts the values here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError

from edm2lite.ema.profile import sigma_rel_to_gamma
from edm2lite.encoders import KINDS, LatentEncoder, PixelEncoder
from edm2lite.objective import LogNormal
from edm2lite.precond import PrecondConfig
from edm2lite.units import parse_count

from .data import DataConfig

Nimg = Annotated[int, BeforeValidator(parse_count)]
AnyEncoder = Annotated[
    Annotated[PixelEncoder, Tag("pixels")] | Annotated[LatentEncoder, Tag("latents")],
    Discriminator(lambda value: value.get("kind", "pixels")),
]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning rate, see :func:`edm2lite.training.schedule.learning_rate`.

    Attributes:
        ref_lr: Peak learning rate alpha_ref.
        ref_batches: Batches t_ref at which the inverse-square-root decay begins; 0 for none.
        rampup_nimg: Length of the linear ramp in images.
        beta1, beta2, eps: Of Adam.
    """

    ref_lr: float = 0.0100
    ref_batches: float = 70000
    rampup_nimg: Nimg = 10_000_000
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not self.ref_lr > 0:
            raise ValueError(f"ref_lr must be positive, got {self.ref_lr}")
        if self.ref_batches < 0 or self.rampup_nimg < 0:
            raise ValueError("ref_batches and rampup_nimg must be at least 0 (0 for none)")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Attributes:
    sigma_rels: Relative widths of the tracked averages.
    dtype: In which snapshots are stored.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.sigma_rels:
            raise ValueError("sigma_rels must hold at least one length, got none")
        sigma_rel_to_gamma(self.sigma_rels)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        data: What to train on.
        encoder: From what is stored to what the network sees; ``kind: pixels`` or ``latents``.
        net: The denoiser.
        loss: Noise levels.
        optim: Optimizer and learning rate.
        ema: Tracked averages and their files.
        seed: Of weights, data order and noise.
        batch_size: Images per optimizer step, over all processes.
        microbatch: Most images in one forward pass of one process; less memory, same result.
        total_nimg: Images to train on.
        status_nimg, snapshot_nimg, checkpoint_nimg: Images between status lines, snapshots, and
            checkpoints.
        max_bad_steps: Steps in a row with a non-finite gradient after which the run stops.
    """

    data: DataConfig
    net: PrecondConfig
    encoder: AnyEncoder = field(default_factory=PixelEncoder)
    loss: LogNormal = field(default_factory=LogNormal)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    seed: int = 0
    batch_size: Nimg = 2048
    microbatch: Nimg = 64
    total_nimg: Nimg = 2**31
    status_nimg: Nimg = 128 * 2**10
    snapshot_nimg: Nimg = 8 * 2**20
    checkpoint_nimg: Nimg = 128 * 2**20
    max_bad_steps: int = 100

    def __post_init__(self) -> None:
        for name in ("batch_size", "microbatch", "total_nimg", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("total_nimg", "status_nimg", "snapshot_nimg", "checkpoint_nimg"):
            value = getattr(self, name)
            if value < 1 or value % self.batch_size:
                near = max(1, round(value / self.batch_size)) * self.batch_size
                raise ValueError(
                    f"{name} must be a multiple of batch_size = {self.batch_size}, got {value};"
                    f" the nearest is {near}"
                )

    def to_yaml(self) -> str:
        """Text form, complete; :func:`load_config` of it gives an equal object."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


MAY_CHANGE = (
    "total_nimg", "microbatch", "status_nimg", "checkpoint_nimg", "max_bad_steps", "data.workers",
    "data.prefetch",
)  # fmt: skip
"""Fields that an existing run may be continued with: they do not change its course."""


def load_config(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run.

    Args:
        source: A YAML file, or the name of a shipped one.
        overrides: ``a.b=c``, the value in YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown key, wrong type or value, with the dotted path.
    """
    values = _read_yaml(source)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set takes key=value, got {text!r}; for example --set seed=1")
        _set(values, key, yaml.safe_load(value))
    _check_keys(values, RunConfig, ())
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in KINDS)
        if first["type"] == "value_error":
            raise ValueError(
                f"{source}: {where + ': ' if where else ''}{first['ctx']['error']}"
            ) from None
        if first["type"] == "missing":
            raise ValueError(f"{source}: {where} must be given and is missing") from None
        wanted = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{source}: {where}: {wanted}, got {first['input']!r}") from None


def differing_keys(a: RunConfig, b: RunConfig) -> list[str]:
    """Dotted names of fields that differ and may not change within a run."""
    flat_a, flat_b = (
        _flatten(_plain(dataclasses.asdict(a))),
        _flatten(_plain(dataclasses.asdict(b))),
    )
    return [
        f"{key} ({flat_a.get(key)} in the run, {flat_b.get(key)} now)"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if key not in MAY_CHANGE and flat_a.get(key) != flat_b.get(key)
    ]


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("edm2lite.configs")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def _read_yaml(source: str) -> dict[str, Any]:
    path: Any = Path(source)
    if not path.is_file():
        path = resources.files("edm2lite.configs") / f"{source}.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"no configuration {source}; give a YAML file or one of {', '.join(shipped())}"
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold keys and values, found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: {parent} is a single value and has no keys below it")
    values[last] = value


def _check_keys(values: Mapping[str, Any], cls: Any, path: tuple[str, ...]) -> None:
    """Unknown keys are an error that names the nearest known one."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        dotted = ".".join((*path, str(key)))
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown key {dotted}; the nearest known one is {'.'.join((*path, *near))}"
            )
        choices = [c for c in (typing.get_args(hints[key]) or [hints[key]]) if _is_config(c)]
        if choices:
            if not isinstance(value, Mapping):
                raise ValueError(f"{dotted} must hold keys and values, got {value!r}")
            _check_keys(value, _chosen(choices, value, dotted), (*path, key))


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _chosen(choices: list[Any], value: Mapping[str, Any], dotted: str) -> Any:
    """The class that a value describes by its ``kind``: the first if it names none."""
    if len(choices) == 1:
        return choices[0]
    kinds = {c.__dataclass_fields__["kind"].default: c for c in choices}
    kind = value.get("kind", next(iter(kinds)))
    if kind not in kinds:
        raise ValueError(f"{dotted}.kind must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> types.MappingProxyType[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return types.MappingProxyType(flat)
