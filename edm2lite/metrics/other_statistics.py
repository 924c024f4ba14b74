"""Feature statistics of other tools, ``.npz`` and EDM2's ``.pkl``, read without executing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edm2lite.dataset.files import Archive
from edm2lite.dataset.npy import parse_npy
from edm2lite.interop.inert_pickle import read_pickle, shown
from edm2lite.interop.plain_records import VALUE_NAMES, array, as_mapping
from edm2lite.messages import one_line
from edm2lite.metrics.moments import Array, check_moments

SUFFIXES = (".npz", ".pkl")
INCEPTION = "inception-v3-compat"
_OF_EDM2 = {"fid": INCEPTION, "fd_dinov2": "dinov2-vit-l-14"}  # its metric -> name of the extractor
_NUM_FEATURES = {
    INCEPTION: 2048, "dinov2-vit-s-14": 384, "dinov2-vit-b-14": 768, "dinov2-vit-l-14": 1024,
    "dinov2-vit-g-14": 1536,
}  # fmt: skip


@dataclass(frozen=True)
class OtherStatistics:
    """Moments of features from a file of another tool.

    Attributes:
        mean: [F] float64.
        cov: [F, F] float64.
        extractor: Name of the extractor as it is known here, or None if the file does not say.
    """

    mean: Array = field(repr=False)
    cov: Array = field(repr=False)
    extractor: str | None


def read_other(path: Path) -> list[OtherStatistics]:
    """The statistics in a file of another tool: one of ``.npz``, one for each metric of ``.pkl``.

    Args:
        path: ``.npz`` with the arrays ``mu`` and ``sigma``; or ``.pkl`` of EDM2, a dict with the
            keys ``fid`` and ``fd_dinov2``, each with ``mu`` and ``sigma``.

    Raises:
        FileNotFoundError: If there is no file at ``path``.
        ValueError: If the file is damaged, holds something else, or asks for code to be executed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ref.npz"
        >>> np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
        >>> read_other(path)
        [OtherStatistics(extractor='inception-v3-compat')]
    """
    if not path.is_file():
        raise FileNotFoundError(f"no statistics at {path}")
    return [_from_npz(path)] if path.suffix == ".npz" else _from_pickle(path)


def chosen(
    path: Path, found: list[OtherStatistics], extractor: str | None
) -> list[OtherStatistics]:
    """Those of an extractor, or all whose extractor is known.

    Args:
        path: The file, for messages.
        found: What :func:`read_other` found in it.
        extractor: Name of the extractor that the caller says made the features, or None.

    Raises:
        ValueError: If the extractor is unknown, or is not the one of any of the statistics.
    """
    if extractor is None:
        for stats in found:
            if stats.extractor is None:
                raise ValueError(_unknown(path, len(stats.mean)))
        return found
    fits = [stats for stats in found if stats.extractor in (None, extractor)]
    if not fits:
        names = " and ".join(str(stats.extractor) for stats in found)
        raise ValueError(f"{path} must hold statistics of {extractor}, it holds those of {names}")
    expected, num = _NUM_FEATURES.get(extractor), len(fits[0].mean)
    if expected not in (None, num):
        raise ValueError(
            f"{path} must hold statistics of the {expected} features of {extractor}, it has {num}"
        )
    return [OtherStatistics(fits[0].mean, fits[0].cov, extractor)]


def _unknown(path: Path, num: int) -> str:
    if num != 1024:
        return (
            f"{path} must hold statistics of 2048 (Inception) or 1024 (DINOv2) features, has {num};"
            " make statistics of other extractors with edm2lite evaluate stats"
        )
    return (
        f"{path} does not say how its 1024 features were made; if they are of DINOv2 ViT-L/14 and"
        " of images that were resized bicubically with antialiasing, as FD-DINOv2 does it, say so"
        f" by edm2lite evaluate stats {path} --extractor dinov2-vit-l-14 --out {path.stem}"
        ".safetensors and use that file"
    )


def _from_npz(path: Path) -> OtherStatistics:
    try:
        files = Archive(path)
        mean, cov = (parse_npy(files.read(f"{name}.npy")) for name in ("mu", "sigma"))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} must be an .npz with arrays mu and sigma, but {one_line(error, 200)}; copy it"
            " again if it was cut short"
        ) from error
    return _checked(path, "", mean, cov, INCEPTION if len(np.ravel(mean)) == 2048 else None)


def _from_pickle(path: Path) -> list[OtherStatistics]:
    try:
        data = memoryview(path.read_bytes())
        value, end = read_pickle(data, VALUE_NAMES)
        if end != len(data):
            raise ValueError(f"is damaged: {len(data) - end} bytes follow after its end")
        content = as_mapping(value, "its content")
        found = {
            metric: _arrays(as_mapping(content[metric], metric), metric)
            for metric in _OF_EDM2
            if metric in content
        }
        if not found:
            keys = ", ".join(shown(key) for key in list(content)[:5]) or "nothing"
            raise ValueError(f"must hold statistics for fid or fd_dinov2, it holds {keys}")
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return [_checked(path, f"{m}: ", *found[m], _OF_EDM2[m]) for m in found]


def _arrays(stats: Mapping[str | int, object], metric: str) -> tuple[np.ndarray, np.ndarray]:
    return array(stats.get("mu"), f"mu of {metric}"), array(
        stats.get("sigma"), f"sigma of {metric}"
    )


def _checked(
    path: Path, what: str, mean: np.ndarray, cov: np.ndarray, extractor: str | None
) -> OtherStatistics:
    try:
        check_moments(mean, cov)
    except ValueError as error:
        raise ValueError(f"{path} must hold {what}mu and sigma of features, but {error}") from error
    return OtherStatistics(np.array(mean, np.float64), np.array(cov, np.float64), extractor)
