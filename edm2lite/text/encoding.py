"""Captions to a store of their states, shard by shard: an interruption costs one of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from edm2lite.atomic import replacing
from edm2lite.claim import claim_folder
from edm2lite.tensorfile import read_header, save_tensors, verify
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.model import TextStates, text_digest
from edm2lite.text.statistics import MEASURED, distinct
from edm2lite.text.store import FORMAT, INDEX, CaptionStore, StoreShard, shard_name

SHARD_TEXTS = 4096

logger = logging.getLogger(__name__)


def encode_captions(
    texts: Iterable[str],
    dest: str | Path,
    encoder: TextEncoder,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionStore:
    """Encode captions into a folder; the same call continues what was interrupted.

    Args:
        texts: Captions, of which each distinct one is encoded once.
        dest: Folder of the store.
        encoder: Text encoder. Statistics that it does not have are taken from the captions.
        device: Device that computes.
        progress: Function that is called with the number of texts done and of all.

    Returns:
        The store, whose encoder has a digest and statistics.

    Raises:
        ValueError: If there is no such encoder, or ``dest`` holds something else or is written by
            another process.

    Example:
        >>> import tempfile
        >>> from edm2lite.text import StaticTextEncoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = encode_captions(["red heart", "blue car"], folder, StaticTextEncoder())
        ...     store.states("red heart").tokens.shape
        torch.Size([2, 256])
    """
    dest = Path(dest)
    with claim_folder(dest) as mine:
        model = encoder.opened(device, download=True)
        encoder = dataclasses.replace(encoder.located(), digest=model.digest)
        ordered = distinct(texts)
        if not ordered:
            raise ValueError("captions must be given to be encoded, found none; add some")
        parts = [ordered[i : i + SHARD_TEXTS] for i in range(0, len(ordered), SHARD_TEXTS)]
        paths = [dest / shard_name(i) for i in range(len(parts))]
        settings = _settings(encoder, ordered)
        missing = _missing(dest, paths, settings)
        todo = [(path, part) for path, part in zip(paths, parts, strict=True) if path in missing]
        done, total = 0, sum(len(part) for _, part in todo)
        for path, part in todo:
            states = []
            for state in model.each(part):
                states.append(state)
                done += 1
                progress(done, total)
            save_tensors(path, _as_tensors(part, states), _metadata(settings))
        mine.check()
        if not encoder.is_complete:
            stored = (state for path in paths for state in StoreShard(path).rows())
            encoder = encoder.with_statistics_of(model.digest, itertools.islice(stored, MEASURED))
        _write_index(dest, encoder, paths, settings)
    return CaptionStore(dest)


def _as_tensors(texts: Sequence[str], states: Sequence[TextStates]) -> dict[str, Tensor]:
    return {
        "digests": torch.tensor([text_digest(text) for text in texts]),
        "ends": torch.tensor([len(state.tokens) for state in states]).cumsum(0),
        "tokens": torch.cat([state.tokens for state in states]),
        "pooled": torch.stack([state.pooled for state in states]),
    }


def _settings(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Any]:
    """What another encoding into the folder must have in common."""
    digest = xxhash.xxh3_64_hexdigest("\0".join(texts).encode())
    used = {"kind": encoder.kind, "digest": encoder.digest, "num_tokens": encoder.num_tokens}
    return {**used, "texts": digest}


def _metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    return {"format": FORMAT, "settings": json.dumps(settings)}


def _missing(dest: Path, paths: Sequence[Path], settings: Mapping[str, Any]) -> set[Path]:
    """The shards that have not been written yet; ValueError if the folder is in use."""
    known = {INDEX, *(path.name for path in paths)}
    for path in dest.iterdir():
        if path.name not in known and not path.name.startswith("."):
            raise ValueError(
                f"{dest} must be free or hold the beginning of this encoding, it has {path.name};"
                " give another folder"
            )
    missing = set()
    for path in paths:
        try:
            found = verify(path).metadata
        except FileNotFoundError:
            missing.add(path)
        except ValueError as error:
            logger.warning("%s; its captions are encoded again", error)
            missing.add(path)
        else:
            if found != {**found, **_metadata(settings)}:
                raise ValueError(
                    f"{dest} must be free or hold the beginning of this encoding, {path.name} is of"
                    " other captions or another encoder; give another folder"
                )
    return missing


def _write_index(
    dest: Path, encoder: TextEncoder, paths: Sequence[Path], settings: Mapping[str, Any]
) -> None:
    content = {
        "format": FORMAT,
        "encoder": dataclasses.asdict(encoder),
        "shards": [read_header(path).digest for path in paths],
        "settings": settings,
    }
    with replacing(dest / INDEX) as file:
        json.dump(content, file)
