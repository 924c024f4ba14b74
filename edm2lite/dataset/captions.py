"""Captions of a data set: any number of texts for each image, and where they are found.

They are read from ``dataset.json``; if it has none, from ``metadata.jsonl`` in any folder (the form
of Hugging Face's image folders: a ``file_name`` and its ``text`` per line); if there is none, from
the text file beside each image, ``photo.txt`` beside ``photo.jpg``, with a caption per line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from edm2lite.dataset.files import Files
from edm2lite.dataset.table import TABLE
from edm2lite.messages import one_line
from edm2lite.strict_json import parse, shown

METADATA = "metadata.jsonl"
MAX_CHARACTERS = 20_000
"""Largest number of characters in all captions of an image."""

_LARGEST, _LARGEST_ROW = 2**20, 2**18  # bytes of a list of captions: in all, and for each file


@dataclass(frozen=True)
class Captions:
    """The captions of every image of a data set.

    Attributes:
        texts: Captions of each image, none of them empty; an empty tuple for an image without any.

    Example:
        >>> captions = Captions([("red heart", "a heart"), ()])
        >>> captions.text(0), captions.text(0, draw=0.5), captions.text(1)
        ('red heart', 'a heart', '')
    """

    texts: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int, draw: float = 0.0) -> str:
        """One caption of an image, each equally likely; ``""`` if it has none.

        Args:
            index: Index of the image.
            draw: Number in [0, 1) that chooses the caption; 0 is the first one.
        """
        texts = self.texts[index]
        return texts[int(draw * len(texts))] if texts else ""

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> Captions:
        """The captions of some images, in that order."""
        return Captions([self.texts[int(i)] for i in indices])

    @property
    def digest(self) -> str:
        """Hash of all texts, which tells captions apart."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.texts).encode())

    def describe(self) -> str:
        """What there is, in one line.

        Example:
            >>> Captions([("red heart", "a heart"), ()]).describe()
            "1 of 2 images, 2 each, of 7 to 9 characters (median 8), such as 'red heart'"
        """
        told = [texts for texts in self.texts if texts]
        counts = [len(texts) for texts in told]
        lengths = [len(text) for texts in told for text in texts]
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        return (
            f"{len(told)} of {len(self)} images, {each} each, of {min(lengths)} to {max(lengths)}"
            f" characters (median {np.median(lengths):g}), such as {shown(told[0][0])}"
        )


def as_captions(rows: Sequence[Any], names: Sequence[str], origin: str) -> Captions | None:
    """Captions from one value per image: a text, a list of texts, or None; None if there are none.

    Space around a text is left out, and a text without anything else counts as none.

    Args:
        rows: Captions of each image.
        names: Names of the images for messages.
        origin: Name of the data set for messages.

    Raises:
        ValueError: If a caption is no text, has characters that no text file can hold, or the
            captions of an image are too long.

    Example:
        >>> as_captions(["a cat ", None, ["one", "", "two"]], ["1", "2", "3"], "photos").texts
        [('a cat',), (), ('one', 'two')]
    """
    texts = [_texts(row, name, origin) for row, name in zip(rows, names, strict=True)]
    return Captions(texts) if any(texts) else None


def stated_captions(
    content: Mapping[str, Any], names: Sequence[str], files: Files
) -> Captions | None:
    """The captions of the images of a folder or ZIP; None if it has none.

    Args:
        content: Content of ``dataset.json``, empty if there is none.
        names: Names of the images.
        files: Files of the folder or ZIP.

    Raises:
        ValueError: If a list of captions is malformed or of other images, or a caption is not
            usable (:func:`as_captions`).
    """
    origin = str(files.path)
    if content.get("captions") is not None:
        found = _from_table(content["captions"], origin)
    else:
        found = _from_metadata(names, files) or _from_text_files(names, files)
    return as_captions([found.get(name) for name in names], names, origin)


def caption_of(row: Mapping[str, Any]) -> Any:
    """What a row of a list says: its ``text``, or ``caption``; None if it has neither."""
    return row.get("text") or row.get("caption")


def _texts(row: Any, name: str, origin: str) -> tuple[str, ...]:
    texts = [] if row is None else row if isinstance(row, list | tuple) else [row]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"captions of {one_line(name, 200)} in {origin} must be a text or a list of texts,"
                f" got {shown(text)}"
            )
        if "\0" in text or not _is_unicode(text):
            raise ValueError(
                f"captions of {one_line(name, 200)} in {origin} must be text in UTF-8, found"
                f" {'a NUL character' if chr(0) in text else 'half of a surrogate pair'}; correct"
                " them"
            )
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise ValueError(
            f"captions of {one_line(name, 200)} in {origin} must have at most {MAX_CHARACTERS}"
            f" characters in all, got {sum(map(len, texts))}; shorten them"
        )
    return tuple(text.strip() for text in texts if text.strip())


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _from_table(listed: Any, origin: str) -> dict[str, Any]:
    try:
        return {str.replace(name, "\\", "/"): texts for name, texts in listed}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"captions in {TABLE} of {origin} must be a list of [name, [text, ...]] pairs, got"
            f" {error}"
        ) from error


def _from_metadata(names: Sequence[str], files: Files) -> dict[str, list[Any]]:
    """Image -> captions that some ``metadata.jsonl`` has for it, in the order of its rows."""
    found: dict[str, list[Any]] = {}
    for path in (name for name in files.names if PurePosixPath(name).name == METADATA):
        data = files.read(path, _LARGEST + _LARGEST_ROW * len(files.names))
        for number, line in enumerate(_decoded(data, path, files).split("\n"), 1):
            if line.strip():
                name, texts = _metadata_row(line, f"line {number} of {path} in {files.path}")
                found.setdefault(str(PurePosixPath(path).parent / name), []).extend(texts)
    found = {name: texts for name, texts in found.items() if texts}
    if found and not set(found) & set(names):
        raise ValueError(
            f"{METADATA} in {files.path} must name images beside it by file_name,"
            f" {one_line(next(iter(found)), 200)} and all others do not exist; correct the names"
        )
    return found


def _metadata_row(line: str, where: str) -> tuple[str, list[Any]]:
    """Name and captions; nothing for a row without captions, whatever else it says."""
    try:
        row = parse(line)
        texts = caption_of(row) if isinstance(row, dict) else None
        if texts is None:
            return "", []
        name = row.get("file_name")
        if not isinstance(name, str):
            raise ValueError(f"its file_name is {shown(name)}")
    except ValueError as error:
        raise ValueError(
            f'{where} must be like {{"file_name": "a.png", "text": "a cat"}}, but {error}'
        ) from error
    return name.replace("\\", "/"), texts if isinstance(texts, list) else [texts]


def _from_text_files(names: Sequence[str], files: Files) -> dict[str, list[str]]:
    """Image -> lines of the text file beside it."""
    existing, found = set(files.names), {}
    for name in names:
        beside = str(PurePosixPath(name).with_suffix(".txt"))
        if beside in existing:
            found[name] = _decoded(files.read(beside, _LARGEST_ROW), beside, files).split("\n")
    return found


def _decoded(data: bytes, name: str, files: Files) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} in {files.path} must be text in UTF-8, and is not from byte {error.start} on;"
            " save it as UTF-8, or leave captions out by edm2lite dataset convert --no-captions"
        ) from error
