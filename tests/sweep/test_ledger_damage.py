"""What a sweep keeps on disk: stopped after any line, and damaged in any place."""

import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from test_sweep import CELL, SETTING, SPREAD, result

from edm2lite.metrics.rows import Rows
from edm2lite.sampling import Sampling
from edm2lite.sweep import Cell, sweep_ema
from edm2lite.sweep import ledger as ledger_module
from edm2lite.sweep.ledger import Ledger
from edm2lite.tensorfile import load_tensors

LENGTHS = [0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20, 0.25]

OWN = """
from edm2lite.metrics import ImageMetric, Measurement

class Contrast(ImageMetric):
    label = "contrast"

    def rows(self, images, conditioning):
        return images.double().std(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)
"""


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def sweep(run_dir, tmp_path, monkeypatch):
    (tmp_path / "own_damage_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def measured(out, lengths=LENGTHS, num=12):
        found = sweep_ema(run_dir, lengths, metric="own_damage_metrics:Contrast", num=num,
                          sampling=Sampling(num_steps=1), out=out)  # fmt: skip
        found.write(picture=False)
        return {name: (out / name).read_bytes() for name in ("sweep.csv", "sweep.md")}

    return measured


def test_a_sweep_stopped_after_any_line_gives_the_same_table(sweep, tmp_path, monkeypatch):
    """Every stop leaves another set of lengths to rebuild together."""
    whole = sweep(tmp_path / "whole")
    lines = (tmp_path / "whole" / "sweep.jsonl").read_text().splitlines()
    assert len(lines) == len(LENGTHS) + 1  # and the raw weights
    real = ledger_module.append_line

    def append(path, record):
        real(path, record)
        raise StoppedError

    stopped = tmp_path / "stopped"
    for number in range(1, len(lines)):
        with monkeypatch.context() as patch:
            patch.setattr(ledger_module, "append_line", append)
            with pytest.raises(StoppedError):
                sweep(stopped)
        assert (stopped / "sweep.jsonl").read_text().splitlines() == lines[:number]
        if number in (1, 4, 6):  # the rest at once, in one pass
            shutil.copytree(stopped, tmp_path / str(number))
            assert sweep(tmp_path / str(number)) == whole, number
    assert sweep(stopped) == whole


def test_a_changed_character_anywhere_in_a_ledger_is_found(tmp_path, caplog):
    cells = [Cell(s, 1024) for s in (0.05, 0.1, 0.2)]
    for i, cell in enumerate(cells):
        Ledger(tmp_path).add(SETTING, cell, 3, result(2.5 + i), SPREAD)
    path = tmp_path / "sweep.jsonl"
    whole = path.read_text()
    begin, end = (whole.index("\n") + 1, whole.index("\n", whole.index("\n") + 1))
    for place in range(begin, end, 5):
        new = random.Random(place).choice([c for c in "0123456789a}\n" if c != whole[place]])
        path.write_text(whole[:place] + new + whole[place + 1 :])
        caplog.clear()
        ledger = Ledger(tmp_path)
        assert ledger.get(SETTING, cells[1], 3) is None, (place, new)
        assert [ledger.get(SETTING, cells[i], 3).value for i in (0, 2)] == [2.5, 4.5]
        assert str(path) in caplog.text and "measured again" in caplog.text
        ledger.add(SETTING, cells[1], 3, result(3.5), SPREAD)
        assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_a_torn_or_blank_line_in_the_middle_costs_itself_alone(tmp_path, caplog):
    Ledger(tmp_path).add(SETTING, CELL, 3, result(2.0), SPREAD)
    path = tmp_path / "sweep.jsonl"
    whole = path.read_text()
    for torn in ("", "{", whole[: whole.index("}") + 1], whole[:-2]):
        path.write_text(f"{torn}\n{whole}")
        caplog.clear()
        assert Ledger(tmp_path).get(SETTING, CELL, 3) == result(2.0)
        assert f"{path}: line 1 is not a whole JSON object" in caplog.text
        assert path.read_text() == whole


def test_lines_without_digest_of_earlier_versions_are_read(tmp_path):
    Ledger(tmp_path).add(SETTING, CELL, 3, result(2.0), SPREAD)
    path = tmp_path / "sweep.jsonl"
    entry = json.loads(path.read_text())
    del entry["digest"]
    path.write_text(json.dumps({**entry, "format": 2}) + "\n")
    assert Ledger(tmp_path).get(SETTING, CELL, 3) == result(2.0)


def swapped(first, second):
    shutil.move(first, first.with_suffix(".away"))
    shutil.move(second, first)
    shutil.move(first.with_suffix(".away"), second)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_swapped_and_damaged_files_of_two_lengths_are_made_again(sweep, tmp_path, caplog):
    out, lengths = tmp_path / "out", [0.1, 0.2]
    whole = sweep(out, lengths)
    spreads = sorted(p for p in (out / "spread").glob("*") if ".images" not in p.name)
    rows = sorted((out / "features").glob("*/*.safetensors"))
    assert len(spreads) == len(rows) == 3
    content = {p: load_tensors(p) for p in (*spreads, *rows)}
    for damage in (
        lambda: swapped(*spreads[:2]),
        lambda: flipped(spreads[2]),
        lambda: (swapped(*rows[:2]), (out / "sweep.jsonl").unlink()),
        lambda: (flipped(rows[2]), (out / "sweep.jsonl").unlink()),
    ):
        damage()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert sweep(out, lengths) == whole
        assert str(out) in caplog.text and " again" in caplog.text
        for path, (tensors, metadata) in content.items():
            found, notes = load_tensors(path)
            assert notes == metadata and all(found[n].equal(tensors[n]) for n in tensors)


def test_damaged_images_do_not_keep_the_page_from_being_written(tmp_path, caplog):
    titles = {"classes": ["cat"]}
    Ledger(tmp_path).keep_images(SETTING, CELL, 3, torch.zeros(1, 1, 8, 8).byte(), titles)
    assert Ledger(tmp_path).titles(SETTING, CELL, 3) == titles
    (path,) = (tmp_path / "spread").glob("*.images.safetensors")
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-5], whole.replace(b"cat", b"dog")):
        path.write_bytes(content)
        caplog.clear()
        ledger = Ledger(tmp_path)
        assert ledger.titles(SETTING, CELL, 3) == {} and ledger.images(SETTING, CELL, 3) is None
        assert caplog.text.count(str(path)) == 1


def test_rows_that_belong_to_other_images_are_not_used(tmp_path, caplog):
    def factory(value):
        return lambda images: (torch.full((len(images), 1), float(value)), None)

    one, two = Rows(tmp_path, {"of": 1}), Rows(tmp_path, {"of": 2})
    for rows, value in ((one, 1), (two, 2)):
        rows.fill(300, factory(value))
    swapped(one.folder, two.folder)
    for rows, value in ((one, 1), (two, 2)):
        rows.fill(300, factory(value))
        assert np.unique(np.concatenate(list(rows.parts(300)))).tolist() == [value]
    assert caplog.text.count("holds rows of other images") == 4
