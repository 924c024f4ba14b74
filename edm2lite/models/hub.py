"""Models as folders for the Hugging Face Hub: ``model.safetensors`` and a model card.

A folder is complete without the Hub: :func:`save_pretrained` writes it, :func:`from_pretrained` and
:func:`edm2lite.load` read it, and none of them needs a connection.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from edm2lite.atomic import replacing
from edm2lite.claim import claim_folder
from edm2lite.diffusion.precond import Precond
from edm2lite.extras import require
from edm2lite.messages import one_line
from edm2lite.models.config_json import config_json
from edm2lite.models.licenses import license_name
from edm2lite.models.loading import EXPORTED, Model, load, read
from edm2lite.models.model_card import PICTURE, Background, model_card
from edm2lite.tensorfile import MODEL_FORMAT, as_bytes, read_header, save_tensors, verify

CARD = "README.md"
CONFIG = "config.json"


def save_pretrained(
    model: str | Path | Model,
    folder: str | Path,
    *,
    license: str | None = None,
    name: str | None = None,
    background: Background | None = None,
) -> Path:
    """Write a model, its card and ``config.json`` to a folder.

    What its run knows about it is added by :func:`edm2lite.sweep.publish.export_model`.

    Args:
        model: Name of the model, as :func:`edm2lite.load` takes it (weights keep the types in which
            they are stored), or a loaded model.
        folder: Folder that has none of them so far, or all from an earlier call just like this.
        license: License of the weights, as the Hub calls it: ``apache-2.0``, ``cc-by-nc-sa-4.0``.
            [default: the one that the file states, as imported weights do]
        name: Name of the model in the card. [default: that of the folder]
        background: What is known about the model besides.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the model is damaged or not one of ours, the license is missing, not such
            a name or not the one that the file states, the folder has another card or another
            model, or another process writes it.

    Example:
        >>> import tempfile
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> config = PrecondConfig(backbone=unet)
        >>> model = Model("tiny", Precond(config), PixelEncoder(), {"model": config.to_json()})
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save_pretrained(model, f"{place}/tiny", license="apache-2.0")
        ...     sorted(path.name for path in folder.iterdir()), from_pretrained(folder).num_classes
        (['README.md', 'config.json', 'model.safetensors'], 0)
    """
    with claim_folder(Path(folder)):  # before an average is rebuilt
        if isinstance(model, Model):
            tensors, metadata = model.net.state_dict(), model.metadata
        else:
            tensors, metadata = read(model)
            Precond.from_tensors(tensors, metadata, str(model))  # refuses what is not ours
        told = model.name if isinstance(model, Model) else str(model)
        license = checked_license(license, metadata, told)
        name = name or Path(folder).resolve().name
        _write(Path(folder), tensors, metadata, license, name, background or Background())
    return Path(folder)


def _write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    license: str,
    name: str,
    background: Background,
) -> None:
    path, card = folder / EXPORTED, folder / CARD
    metadata = {**metadata, "format": MODEL_FORMAT}
    model_card(metadata, license, name, background)  # fails before anything is written
    if not path.exists() and not card.exists():
        save_tensors(path, tensors, metadata)
    elif not _holds(path, tensors, metadata):
        raise _taken(path if path.exists() else card, "")
    metadata = read_header(path).metadata
    files = {
        folder / CONFIG: config_json(metadata, background).encode(),
        **({folder / PICTURE: background.samples.picture} if background.samples else {}),
        card: model_card(metadata, license, name, background).encode(),
    }
    for file, content in files.items():
        if file.exists() and file.read_bytes() != content:
            raise _taken(file, " and says something else")
    for file, content in files.items():
        if not file.exists():
            with replacing(file, "wb") as stream:
                stream.write(content)


def checked_license(requested: str | None, metadata: Mapping[str, str], name: str) -> str:
    """The license of a model, by the name that the Hub has for it.

    Args:
        requested: What a person gives, or None.
        metadata: Metadata of the model file, which may state a license.
        name: Name of the model in messages.

    Raises:
        ValueError: If there is none, the Hub does not know it, or the file states another one.

    Example:
        >>> checked_license("MIT", {}, "runs/digits")
        'mit'
    """
    stated = metadata.get("license")
    license = requested or stated
    if license is None:
        raise ValueError(
            f"license must be given, {name} does not state one; for example apache-2.0"
        )
    license = license_name(license)
    if stated is not None and license != license_name(stated):
        raise ValueError(
            f"license must be that of the weights: {name} states {stated}, got {license}"
        )
    return license


def _taken(path: Path, but: str) -> ValueError:
    return ValueError(f"the result must go to a new folder, {path} exists{but}; give another")


def _holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file has these tensors and this metadata, to the last byte."""
    try:
        header = verify(path)
    except (FileNotFoundError, ValueError):
        return False
    specs = [(name, spec.dtype, spec.shape) for name, spec in header.tensors.items()]
    if specs != [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]:
        return False
    state = xxhash.xxh3_128()
    for value in tensors.values():
        state.update(as_bytes(value.detach().cpu().contiguous()))
    return header.digest == state.hexdigest() and _said(header.metadata) == _said(metadata)


def _said(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what is computed from the rest of a file."""
    return {k: v for k, v in metadata.items() if k not in ("digest", "header_digest")}


def from_pretrained(source: str | Path, *, revision: str | None = None, hub: Any = None) -> Model:
    """Load the model in a folder, or in a repository of the Hub; no code in it is executed.

    Args:
        source: Folder that :func:`save_pretrained` wrote, or ``user/name`` on the Hub.
        revision: Branch, tag or commit on the Hub. [default: the newest]
        hub: Module to use in place of huggingface_hub.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a file on the Hub, or no
            connection.
        ValueError: If the model is damaged or not one of ours.
        ImportError: If there is no such folder, and huggingface_hub is not installed.

    Example:
        >>> from_pretrained("me/edm2-digits", revision="main")  # doctest: +SKIP
    """
    if Path(source).exists():
        if revision is not None:
            raise ValueError(
                f"revision must be left out for a folder, {source} is not a repository of the Hub"
            )
        return load(source)
    hub = _huggingface_hub() if hub is None else hub
    try:
        path = hub.hf_hub_download(str(source), EXPORTED, revision=revision)
    except _errors(hub) as error:
        raise FileNotFoundError(
            f"there is no folder {source}, and the Hub does not have such a model: {_line(error)}"
        ) from error
    return load(path)


def push_to_hub(
    model: str | Path | Model,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    message: str = "Upload a model of edm2lite",
    hub: Any = None,
) -> str:
    """Upload a model with its card; the repository is created if there is none.

    Args:
        model: Name of the model, as :func:`edm2lite.load` takes it, or a loaded model.
        repo_id: Repository, ``user/name``.
        license: License of the weights, as in :func:`save_pretrained`.
        private: Whether a repository that is created now is private.
        message: Message of the commit.
        hub: Module to use in place of huggingface_hub, whose ``HfApi()`` takes the token that ``hf
            auth login`` has stored.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: As :func:`save_pretrained`.
        OSError: If the Hub refuses, or cannot be reached.
        ImportError: If huggingface_hub is not installed.

    Example:
        >>> push_to_hub("runs/digits@sigma_rel=0.13", "me/digits",
        ...             license="apache-2.0")  # doctest: +SKIP
    """
    hub = _huggingface_hub() if hub is None else hub
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, license=license, name=repo_id)
        return upload_folder(folder, repo_id, private=private, message=message, hub=hub)


def upload_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload a model of edm2lite",
    hub: Any = None,
) -> str:
    """Upload a folder that :func:`save_pretrained` wrote, as it is.

    Arguments, result and errors are those of :func:`push_to_hub`.

    Example:
        >>> upload_folder("digits", "me/digits")  # doctest: +SKIP
    """
    hub = _huggingface_hub() if hub is None else hub
    try:
        api = hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message)
    except _errors(hub) as error:
        reason = f"the Hub did not accept the model ({_line(error)})"
        raise OSError(errno.EIO, reason, repo_id) from error
    return str(commit.commit_url)


def _huggingface_hub() -> Any:
    require("huggingface_hub")
    import huggingface_hub.utils

    return huggingface_hub


def _errors(hub: Any) -> tuple[type[BaseException], ...]:
    """The errors that the package raises for bad names, refusals, and from its HTTP library."""
    return OSError, ValueError, *hub.utils.HfHubHTTPError.__bases__


def _line(error: BaseException) -> str:
    return one_line(error, 300) or type(error).__name__
