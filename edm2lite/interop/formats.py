"""Which tool wrote what is to be imported, by the names of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edm2lite.interop import edm2, ema_pytorch

Writer = Literal["edm2", "ema-pytorch"]


def written_by(source: str | Path) -> Writer:
    """The tool that wrote a file or a folder.

    Raises:
        FileNotFoundError: There is no such file, or nothing in the folder that we know.
        ValueError: A folder has files of both, or a file is none of them.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix == ".pkl":
            return "edm2"
        raise ValueError(f"a single file must be a network pickle of EDM2 (.pkl), got {source}")
    names = [path.name for path in source.glob("*")]
    ours: list[Writer] = []
    if any(edm2.NAME.fullmatch(name) for name in names):
        ours.append("edm2")
    if any(ema_pytorch.NAME.fullmatch(name) for name in names):
        ours.append("ema-pytorch")
    if len(ours) > 1:
        raise ValueError(
            f"{source} has snapshots of EDM2 (*.pkl) and of ema-pytorch (*.pt); give each its own"
            " folder"
        )
    if not ours:
        raise FileNotFoundError(
            f"{source} must be a network pickle of EDM2, or a folder of <prefix>-<kimg>-"
            "<sigma_rel>.pkl (EDM2) or of <index>.<step>.pt (ema-pytorch), and is not"
        )
    return ours[0]
