"""Writes a rebuilt average as a folder that ``from_pretrained`` of transformers loads.

The weights are summed and written in one pass, shard after shard, in bounded memory. Configuration
and tokenizer are copied from a folder of the model, such as one of the checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edm2lite.atomic import replacing_folder, sync
from edm2lite.claim import claim_file
from edm2lite.ema.casts import load_torch_if_faster
from edm2lite.ema.result import Reconstruction
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.workers import WorkerPool, num_cores
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import TensorSpec, TensorWriter
from edm2lite.tensorheader import type_of

SHARD_BYTES = 5 * 10**9
"""Largest shard, unless one tensor alone is larger."""
COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
"""Suffixes of the files beside the weights that belong to a model: configuration and tokenizer."""

_LEFT = ("trainer_state.json", "training_args.json", "requirements.txt")


def build_hugging_face(
    plan: Reconstruction,
    out: str | Path,
    *,
    dtype: str | None = None,
    config_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Carry out a plan for an average, into a new folder for ``from_pretrained``.

    Args:
        plan: Plan from :func:`edm2lite.ema.plan_targets`, of a run with the tensor names of the
            model. Its predicted error includes the rounding to ``dtype`` after ``stored_as``.
        out: The folder; it must not exist. It appears complete or not at all.
        dtype: Floating-point type of the weights. [default: that of the latest snapshot]
        config_from: Folder with ``config.json``. [default: the latest checkpoint of the run]
        shard_bytes: Largest shard, unless one tensor alone is larger.
        progress: Called with the bytes read and the total after each block.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: If there is no folder with ``config.json``.
        ValueError: If ``out`` exists, or a snapshot is damaged. Nothing is written then.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, plan_targets
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "config.json").write_text('{"dtype": "float32"}')
        >>> ema = PowerFunctionEMA({"a": torch.ones(3), "b": torch.ones(5)})
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(root / "snapshots")
        >>> (plan,) = plan_targets(root, sigma_rel=0.10)
        >>> folder = build_hugging_face(plan, root / "hf", config_from=root, shard_bytes=16)
        >>> sorted(path.name for path in folder.glob("m*"))[1:]
        ['model-00002-of-00002.safetensors', 'model.safetensors.index.json']
    """
    out, dtype = Path(out), dtype or plan.inputs[-1].dtype
    template = _template(plan, config_from)
    config = _config(template, dtype)
    kind = type_of(dtype)
    specs = {
        name: TensorSpec(kind if spec.is_floating_point else spec.type, spec.shape)
        for name, spec in plan.inputs[-1].header.tensors.items()
    }
    shards = _sharded(specs, shard_bytes)
    size = sum(spec.numel for spec in specs.values())
    load_torch_if_faster(len(plan.inputs) * size, size, num_cores())
    with claim_file(out) as mine:
        if out.exists():
            raise ValueError(f"the model must go to a new folder, {out} exists; give another")
        with replacing_folder(out) as folder:
            with WorkerPool() as pool, _ShardWriter(folder, shards, plan.metadata) as writer:
                headers = [info.header for info in plan.inputs]
                weights = plan.coefficients[None]
                sums = weighted_sums(headers, weights, pool, type=kind, progress=progress)
                for _, values in sums:
                    pool.add(writer.append, [values[0].view(np.uint8).data])
                pool.run()
            _describe(folder, shards, template, config)
            mine.check()
    return out


def _sharded(
    specs: Mapping[str, TensorSpec], limit: int
) -> list[tuple[str, dict[str, TensorSpec]]]:
    """Names of the files and the tensors in each, in order."""
    groups: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = spec
        size += spec.nbytes
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    count = len(groups)
    return [(f"model-{i:05d}-of-{count:05d}.safetensors", g) for i, g in enumerate(groups, 1)]


class _ShardWriter:
    """Writes bytes that come in order to one shard after the other."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[tuple[str, Mapping[str, TensorSpec]]],
        metadata: Mapping[str, str],
    ):
        described = {"format": "pt", "edm2lite": json.dumps(metadata)}
        self._writers = [TensorWriter(folder / name, specs, described) for name, specs in shards]
        self._sizes = [sum(s.nbytes for s in specs.values()) for _, specs in shards]
        self._stack, self._writer, self._left = ExitStack(), self._writers[0], 0

    def __enter__(self) -> _ShardWriter:
        self._next()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def append(self, worker: int, data: memoryview) -> None:
        """Write the next bytes; called by one thread at a time."""
        while len(data) > self._left:
            self._writer.append(data[: self._left])
            data = data[self._left :]
            self._stack.close()
            self._next()
        self._writer.append(data)
        self._left -= len(data)

    def _next(self) -> None:
        self._writer, self._left = self._writers.pop(0), self._sizes.pop(0)
        self._stack.enter_context(self._writer)


def _template(plan: Reconstruction, config_from: str | Path | None) -> Path:
    """The folder that configuration and tokenizer are copied from."""
    if config_from is not None:
        folders = [Path(config_from)]
    else:
        sources = [info.header.metadata.get("source") for info in reversed(plan.inputs)]
        folders = [Path(source) for source in sources if source is not None]
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"the configuration of the model must be in {folders[0] if folders else 'a folder'} as"
        " config.json, and there is none; name a folder that has it (--config-from)"
    )


def _config(template: Path, dtype: str) -> dict[str, object]:
    """``config.json`` with the type in which the weights are stored."""
    path = template / "config.json"
    try:
        config = parse_object(path.read_bytes(), finite=False)
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON object, but {error}") from error
    return {k: dtype if k in ("dtype", "torch_dtype") else v for k, v in config.items()}


def _describe(
    folder: Path,
    shards: Sequence[tuple[str, Mapping[str, TensorSpec]]],
    template: Path,
    config: Mapping[str, object],
) -> None:
    """Write everything beside the weights: the index, the configuration, the tokenizer."""
    for path in sorted(template.iterdir()):
        is_index = path.name.endswith(".index.json")
        if path.suffix in COPIED and path.is_file() and not is_index and path.name not in _LEFT:
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if len(shards) > 1:
        total = sum(spec.nbytes for _, specs in shards for spec in specs.values())
        places = {tensor: name for name, specs in shards for tensor in specs}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        sync(path)
    sync(folder)
