"""The digits with captions: two for most images, none for every tenth."""

import dataclasses

from edm2lite.dataset import open_dataset
from edm2lite.dataset.captions import Captions

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def digits():
    plain = open_dataset("digits")
    texts = [
        () if i % 10 == 9 else (f"a {NAMES[label]}", f"the digit {NAMES[label]}")
        for i, label in enumerate(plain.labels)
    ]
    return dataclasses.replace(plain, captions=Captions(texts))


def held_out():
    """A hundred of them, upside down."""
    dataset = digits()
    return dataclasses.replace(
        dataset, name="held out", num_images=100, read=lambda i: dataset.read(i)[:, ::-1],
        captions=dataset.captions.rows(range(100)), table=dataset.table.rows(range(100)),
    )  # fmt: skip
