"""Recognizes the tool that wrote the files to import, by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edm2lite.interop import edm2, ema_pytorch

Writer = Literal["edm2", "ema-pytorch", "dit", "diffusers"]

_FILES: dict[str, Writer] = {".pkl": "edm2", ".pt": "dit", ".pth": "dit"}


def written_by(source: str | Path) -> Writer:
    """The tool that wrote a file or a folder.

    Args:
        source: A network pickle of EDM2, a checkpoint of DiT or SiT, a folder of snapshots of EDM2
            or ema-pytorch, or a folder of diffusers.

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder holds no such files.
        ValueError: If the file is of another kind, or the folder holds files of both tools.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "0.1000.pt").touch()
        >>> written_by(folder)
        'ema-pytorch'
    """
    source = Path(source)
    if source.is_file():
        if source.suffix not in _FILES:
            raise ValueError(
                "a single file must be a network pickle of EDM2 (.pkl) or a checkpoint of DiT or"
                f" SiT (.pt), got {source}"
            )
        return _FILES[source.suffix]
    if any((source / name).is_file() for name in ("config.json", "model_index.json")):
        return "diffusers"
    names = [path.name for path in source.glob("*")]
    writers: list[Writer] = []
    if any(edm2.NAME.fullmatch(name) for name in names):
        writers.append("edm2")
    if any(ema_pytorch.NAME.fullmatch(name) for name in names):
        writers.append("ema-pytorch")
    if len(writers) > 1:
        raise ValueError(
            f"{source} has snapshots of EDM2 (*.pkl) and of ema-pytorch (*.pt); give each its own"
            " folder"
        )
    if not writers:
        raise FileNotFoundError(
            f"{source} must be a network pickle of EDM2, a checkpoint of DiT or SiT, a folder of"
            " <prefix>-<kimg>-<sigma_rel>.pkl (EDM2) or of <index>.<step>.pt (ema-pytorch), or one"
            " of diffusers, and is not"
        )
    return writers[0]
