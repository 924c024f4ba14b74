"""Safetensors files of strangers: one ValueError that names the file, in little time and memory."""

import json
import os
import random
import resource
import struct

import pytest
import safetensors.torch
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots
from edm2lite.ema.doctor import examine
from edm2lite.ema.snapshot import read_info
from edm2lite.tensorfile import load_tensors, read_header, save_tensors


def write(path, entries, data=b"\0" * 8, raw=None):
    """A file with this header and these bytes, unsealed as those of other tools are."""
    text = raw if raw is not None else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "metadata is a list": {"__metadata__": [1], "a": entry()},
    "metadata is text": {"__metadata__": "x", "a": entry()},
    "metadata is null": {"__metadata__": None, "a": entry()},
    "metadata holds numbers": {"__metadata__": {"format": 1}, "a": entry()},
    "an entry is a list": {"a": [1, 2]},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "unknown type": {"a": entry(dtype="F31")},
    "type is a list": {"a": entry(dtype=["F32"])},
    "fractions": {"a": entry(shape=(2.0,))},
    "fractional offsets": {"a": entry(0.0, 8.0)},
    "negative shape": {"a": entry(shape=(-1, -2))},
    "truth as a number": {"a": entry(shape=(True, 2))},
    "more than 64 bits": {"a": entry(shape=(2**70, 0), end=0)},
    "a thousand axes": {"a": entry(shape=(1,) * 1000 + (2,))},
    "overlap": {"a": entry(), "b": entry()},
    "a gap": {"a": entry(4, 8, (1,))},
    "a gap between": {"a": entry(0, 4, (1,)), "b": entry(8, 12, (1,))},
    "offsets that do not match": {"a": entry(0, 8, (3,))},
    "a list": [1, 2],
    "a number": 7,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_makes_no_sense_is_one_line(tmp_path, name):
    data = b"\0" * (12 if name == "a gap between" else 8)
    path = write(tmp_path / "x.safetensors", HOSTILE[name], data)
    with pytest.raises(ValueError, match=r"x.safetensors .*restore it from a copy"):
        read_header(path)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":1e999}', b"\xff\xfe", b"", b"nul",
    ],
    ids=["deep", "a name twice", "infinity", "not UTF-8", "empty", "cut"],
)  # fmt: skip
def test_a_header_that_is_no_sound_json_is_one_line(tmp_path, raw):
    path = write(tmp_path / "x.safetensors", None, raw=raw)
    with pytest.raises(ValueError, match="unreadable header"):
        read_header(path)


def test_a_header_larger_than_any_model_needs_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 99 * 2**20))
        file.truncate(100 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="cut short inside its header"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_truth_values_other_than_0_and_1_are_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": entry(0, 2, (2,), "BOOL")}, b"\1\2")
    with pytest.raises(ValueError, match="truth value"):
        load_tensors(path)


@pytest.fixture
def snapshots(tmp_path):
    ema, folder = PowerFunctionEMA({"a": torch.ones(3)}, [0.10]), tmp_path / "snapshots"
    for nimg in (64, 128):
        ema.update(nimg)
        ema.save_snapshots(folder)
    return folder


@pytest.mark.parametrize(
    "key, value",
    [
        ("history", "null"), ("history", "[[64,-1]]"), ("history", "[[1,1]]"), ("history", "[1]"),
        ("history", "[" * 100_000), ("nimg", str(2**70)), ("nimg", "9" * 5000), ("nimg", "0"),
        ("gamma", "1e308"), ("gamma", "nan"), ("gamma", "-1"), ("dtype", "bogus"),
        ("sigma_rel", "7"), ("sigma_rel", "nan"), ("start_nimg", "-4"), ("start_nimg", "128"),
    ],
)  # fmt: skip
def test_a_snapshot_with_impossible_metadata_is_one_line(snapshots, key, value):
    path = snapshots / "z.safetensors"
    tensors, metadata = load_tensors(sorted(snapshots.iterdir())[-1])
    changed = {k: v for k, v in metadata.items() if "digest" not in k} | {key: value}
    save_tensors(path, tensors, changed)
    with pytest.raises(ValueError, match=r"z.safetensors must have the metadata of edm2lite.ema/1"):
        read_info(path)
    with pytest.raises(ValueError, match="z.safetensors"):
        list_snapshots(snapshots)
    report = examine(snapshots, [0.1])
    assert [finding.path for finding in report.findings] == [path] and len(report.intact) == 2


@pytest.mark.parametrize("kind", ["link to nothing", "folder", "pipe"])
def test_what_is_no_file_is_named_and_passed_over(snapshots, kind, caplog):
    path = snapshots / "z.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(snapshots / "nowhere")
    with caplog.at_level("WARNING"):
        assert len(list_snapshots(snapshots)) == 2
    assert "z.safetensors is not a file but" in caplog.text
    report = examine(snapshots, [0.1])
    assert [finding.path for finding in report.findings] == [path]
    _, metadata = load_tensors(sorted(p for p in snapshots.iterdir() if p != path)[0])
    ema = PowerFunctionEMA({"a": torch.ones(3)}, [0.10], run=metadata["run"], start_nimg=128)
    ema.update(192)
    ema.save_snapshots(snapshots)  # a run goes on beside it


def test_three_thousand_damaged_headers_never_raise_anything_else(snapshots, tmp_path):
    original = sorted(snapshots.iterdir())[-1].read_bytes()
    length = 8 + int.from_bytes(original[:8], "little")
    rng, path = random.Random(0), tmp_path / "x.safetensors"
    accepted, messages = 0, []
    for _ in range(3000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(length)
            if rng.random() < 0.5:
                data[at] = rng.randrange(256)
            elif rng.random() < 0.5:
                del data[at]
            else:
                data.insert(at, rng.choice(b'{}[]",:0123456789eE-+.\\nulltrue'))
        path.write_bytes(data)
        try:
            accepted += read_info(path) is not None and bytes(data) != original
        except ValueError as error:
            messages.append(str(error))
    assert accepted == 0 and all("x.safetensors" in message for message in messages)


def test_a_snapshot_that_another_tool_wrote_anew_is_not_called_intact(snapshots):
    """Its digests are gone, and with them every way to tell whether a bit has flipped."""
    path = sorted(snapshots.iterdir())[-1]
    tensors, metadata = load_tensors(path)
    kept = {k: v for k, v in metadata.items() if "digest" not in k}
    safetensors.torch.save_file(tensors, path, kept)
    with pytest.raises(ValueError, match="must carry digests .*another tool wrote it anew"):
        list_snapshots(snapshots)
    (finding,) = examine(snapshots, [0.1]).findings
    assert (finding.path, finding.state) == (path, "damaged")
