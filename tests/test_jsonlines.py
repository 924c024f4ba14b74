"""Files of JSON lines: every line that is whole is read, whatever happened to the others."""

import errno
import json
import os
import random

import pytest

from edm2lite import jsonlines
from edm2lite.jsonlines import append_line, read_lines

RECORDS = [{"nimg": 64, "of": {"a": 1}}, {"nimg": 128, "of": {"b": [1, {}]}}, {"nimg": 192}]


def written(path):
    for record in RECORDS:
        append_line(path, record)
    return path.read_bytes()


def test_every_cut_costs_the_lines_that_it_reaches(tmp_path):
    path = tmp_path / "stats.jsonl"
    content = written(path)
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        records, notices = read_lines(path)
        assert records == RECORDS[: sum(end <= size for end in ends)], size
        assert bool(notices) == (size > 0 and size not in ends and size - 1 not in ends), size


def test_a_torn_line_costs_itself_alone_when_more_is_appended(tmp_path):
    path = tmp_path / "stats.jsonl"
    content = written(path)
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        before, _ = read_lines(path)
        append_line(path, {"nimg": 256})
        append_line(path, {"nimg": 320})
        assert read_lines(path)[0] == [*before, {"nimg": 256}, {"nimg": 320}], size


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b'{"a": {"b": 1}',
        b'"text"',
        b"[1]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"\0" * 9,
        b"[" * 10**5,
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b'{"nimg": 64}\n' + line + b'\n{"nimg": 128}\n')
    records, (notice,) = read_lines(path)
    assert records == [{"nimg": 64}, {"nimg": 128}]
    assert notice == f"{path}: line 2 is not a whole JSON object and was left out"


def test_many_damaged_lines_are_one_notice(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_text("{}\n" + "x\n" * 20)
    assert read_lines(path) == (
        [{}],
        [f"{path}: 20 lines (2, 3, 4, ...) are not whole JSON objects and were left out"],
    )


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "stats.jsonl") == ([], [])


def test_random_bytes_never_stop_a_reader(tmp_path):
    path, rng = tmp_path / "stats.jsonl", random.Random(0)
    content = written(path)
    for _ in range(500):  # a byte costs at most its own line and, as a line's end, the next one
        damaged = bytearray(content)
        changes = rng.randrange(1, 4)
        for _ in range(changes):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        records, _ = read_lines(path)
        assert len(records) >= content.count(b"\n") - 2 * changes
        for record in records:
            json.dumps(record)


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jsonlines.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space") as caught:
        append_line(tmp_path / "stats.jsonl", {})
    assert caught.value.filename == str(tmp_path / "stats.jsonl")
