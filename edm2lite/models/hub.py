"""Models as folders for the Hugging Face Hub: ``model.safetensors`` and a model card.

A folder is complete without the Hub: :func:`save_pretrained` writes it, :func:`from_pretrained` and
:func:`edm2lite.load` read it, and neither needs a network.
"""

from __future__ import annotations

import errno
import re
import tempfile
from pathlib import Path
from typing import Any

from edm2lite.atomic import replacing
from edm2lite.diffusion.precond import Precond
from edm2lite.messages import one_line
from edm2lite.models.loading import EXPORTED, Model, load, read
from edm2lite.models.model_card import model_card
from edm2lite.tensorfile import MODEL_FORMAT, read_header, save_tensors

CARD = "README.md"


def save_pretrained(
    model: str | Path | Model, folder: str | Path, *, licence: str, name: str | None = None
) -> Path:
    """Write a model and its card to a folder.

    Args:
        model: A name as :func:`edm2lite.load` takes it (weights keep the types in which they are
            stored), or a loaded model.
        folder: Without either of them so far.
        licence: Of the weights, as the Hub calls it: ``apache-2.0``, ``cc-by-nc-sa-4.0``, ...
        name: In the card. [default: that of the folder]

    Returns:
        The folder.

    Raises:
        FileNotFoundError, ValueError: As :func:`edm2lite.load`; the licence is no such name, or the
            folder has a card or a model.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ValueError(
            "licence must be one as the Hub calls it, apache-2.0 or cc-by-nc-sa-4.0 for example,"
            f" got {licence!r}"
        )
    if isinstance(model, Model):
        tensors, metadata = model.net.state_dict(), model.metadata
    else:
        tensors, metadata = read(model)
        Precond.from_tensors(tensors, metadata, str(model))  # that it is whole and one of ours
    folder = Path(folder)
    name = name or folder.resolve().name
    taken = [folder / file for file in (EXPORTED, CARD) if (folder / file).exists()]
    if taken:
        raise ValueError(f"the result must go to a new folder, {taken[0]} exists; give another")
    model_card(metadata, licence, name)  # that one can be written
    path = save_tensors(folder / EXPORTED, tensors, {**metadata, "format": MODEL_FORMAT})
    with replacing(folder / CARD) as file:
        file.write(model_card(read_header(path).metadata, licence, name))
    return folder


def from_pretrained(source: str | Path, *, revision: str | None = None) -> Model:
    """The model in a folder, or in a repository of the Hub; no code in it is executed.

    Args:
        source: A folder that :func:`save_pretrained` wrote, or ``user/name`` on the Hub.
        revision: Branch, tag or commit on the Hub. [default: the newest]

    Raises:
        FileNotFoundError: There is no such folder, nor such a file on the Hub, or no connection.
        ValueError: The model is damaged or not one of ours.
        ImportError: There is no such folder, and huggingface_hub is not installed.
    """
    if Path(source).exists():
        if revision is not None:
            raise ValueError(f"a revision is one of a repository of the Hub, {source} is a folder")
        return load(source)
    hub = _huggingface_hub()
    try:
        path = hub.hf_hub_download(str(source), EXPORTED, revision=revision)
    except _errors(hub) as error:
        raise FileNotFoundError(
            f"there is no folder {source}, and the Hub does not give such a model: {_line(error)}"
        ) from error
    return load(path)


def push_to_hub(
    model: str | Path | Model,
    repo_id: str,
    *,
    licence: str,
    private: bool = False,
    message: str = "Upload a model of edm2lite",
    hub: Any = None,
) -> str:
    """Upload a model with its card; the repository is made if there is none.

    Args:
        model: A name as :func:`edm2lite.load` takes it, or a loaded model.
        repo_id: ``user/name``.
        licence: Of the weights, as in :func:`save_pretrained`.
        private: Whether a repository that is made now is.
        message: Of the commit.
        hub: In place of the package huggingface_hub, whose ``HfApi()`` takes the token that ``hf
            auth login`` stored.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError, ValueError: As :func:`save_pretrained`.
        OSError: The Hub refuses, or cannot be reached.
        ImportError: huggingface_hub is not installed.
    """
    hub = _huggingface_hub() if hub is None else hub
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, licence=licence, name=repo_id)
        try:
            api = hub.HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except _errors(hub) as error:
            reason = f"the Hub did not take the model ({_line(error)})"
            raise OSError(errno.EIO, reason, repo_id) from error
    return str(commit.commit_url)


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub.utils
    except ImportError as error:
        raise ImportError("the Hub needs huggingface_hub: pip install 'edm2lite[hub]'") from error
    return huggingface_hub


def _errors(hub: Any) -> tuple[type[BaseException], ...]:
    """What the package raises for bad names, refusals, and from its HTTP library."""
    return OSError, ValueError, *hub.utils.HfHubHTTPError.__bases__


def _line(error: BaseException) -> str:
    return one_line(error, 300) or type(error).__name__
