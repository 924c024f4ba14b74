"""``dataset.json`` of generated images: classes, prompts, and digests of other conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.conditions import class_indices
from edm2lite.text.model import shortened


@dataclass(frozen=True)
class ConditionTable:
    """What the network was told about images, by seed.

    Attributes:
        classes: Class of each image.
        digests: Digest of the other conditions of each image: vectors, condition images.
        prompts: Prompt of each image, "" where there was none.

    Example:
        >>> table = ConditionTable.of([5, 6], Conditioning({"label": torch.tensor([3, 7])}))
        >>> table.classes
        {5: 3, 6: 7}
        >>> table.content("{:06d}.png".format)
        {'labels': [['000005.png', 3], ['000006.png', 7]]}
    """

    classes: dict[int, int] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    prompts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        seeds: Sequence[int],
        conditioning: Conditioning,
        prompts: Sequence[str] | None = None,
    ) -> ConditionTable:
        """The table of images with these conditions and prompts, one row per seed."""
        classes = class_indices(conditioning)
        names = [name for name in conditioning if name != "label" or classes is None]
        others = conditioning.only(names)
        return cls(
            {} if classes is None else dict(zip(seeds, classes, strict=True)),
            dict(zip(seeds, _digests(others), strict=True)) if others else {},
            {} if prompts is None else dict(zip(seeds, prompts, strict=True)),
        )

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> ConditionTable:
        """The table in the content of a ``dataset.json``."""
        tables = (content.get(key) or () for key in ("labels", "condition_digests", "captions"))
        classes, digests, captions = (
            {int(Path(name).stem): value for name, value in rows} for rows in tables
        )
        prompts = {seed: texts[0] if texts else "" for seed, texts in captions.items()}
        return cls(classes, digests, prompts)

    def content(self, name: Callable[[int], str]) -> dict[str, Any]:
        """The content of a ``dataset.json``.

        Args:
            name: Function from a seed to the name of its file.
        """

        def rows(values: Mapping[int, Any]) -> list[list[Any]]:
            return [[name(seed), value] for seed, value in sorted(values.items())]

        content: dict[str, Any] = {"labels": rows(self.classes) if self.classes else None}
        if self.prompts:  # in the form of data sets: several captions are possible
            content["captions"] = rows({s: [p] if p else [] for s, p in self.prompts.items()})
        return {**content, "condition_digests": rows(self.digests)} if self.digests else content

    def merged(self, other: ConditionTable) -> ConditionTable:
        """This table with the rows of another one, which replace equal seeds."""
        return ConditionTable(
            self.classes | other.classes,
            self.digests | other.digests,
            self.prompts | other.prompts,
        )

    def check(self, there: ConditionTable, path: Path) -> None:
        """Compare with the table of the images that are there already.

        Args:
            there: The table of the images in ``path``.
            path: Folder or ZIP file, for the message.

        Raises:
            ValueError: If an image that is there was made with other conditions.
        """
        other = [s for s, c in self.classes.items() if there.classes.get(s, c) != c]
        if other:
            raise ValueError(
                f"{path} holds seed {other[0]} as class {there.classes[other[0]]}, not"
                f" {self.classes[other[0]]}; choose another place for the images"
            )
        other = [s for s, prompt in self.prompts.items() if there.prompts.get(s, prompt) != prompt]
        if other:
            raise ValueError(
                f"{path} holds seed {other[0]} of prompt {shortened(there.prompts[other[0]])}, not"
                f" {shortened(self.prompts[other[0]])}; choose another place for the images"
            )
        other = [s for s, digest in self.digests.items() if there.digests.get(s, digest) != digest]
        if other:
            raise ValueError(
                f"{path} holds seed {other[0]} made with another condition; choose another place"
                " for the images"
            )


def _digests(conditioning: Conditioning) -> list[str]:
    """A digest of the conditions of each image, over their names and bytes."""
    values = {
        name: conditioning[name].cpu().contiguous().flatten(1).view(torch.uint8).numpy()
        for name in sorted(conditioning)
    }
    num = len(next(iter(values.values())))
    digests = []
    for i in range(num):
        state = xxhash.xxh3_64()
        for name, rows in values.items():
            state.update(name.encode())
            state.update(rows[i].tobytes())
        digests.append(state.hexdigest())
    return digests
