"""The oracle for the format is the safetensors library; for damage, every byte of a small file."""

import os
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from edm2lite.atomic import replacing
from edm2lite.tensorfile import (
    TensorSpec,
    TensorWriter,
    all_finite,
    load_tensors,
    read_header,
    save_tensors,
    verify,
)

TENSORS = {
    "a.weight": torch.randn(3, 5),
    "b": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "h": torch.randn(7).half(),
    "steps": torch.arange(6).reshape(2, 3),
    "flag": torch.tensor([True, False, True]),
}


def test_safetensors_reads_what_we_write_and_back(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "test", "note": 'a "b" \n'})
    theirs = safetensors.torch.load_file(path)
    ours, metadata = load_tensors(path)
    assert theirs.keys() == ours.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert ours[name].equal(value) and ours[name].dtype == value.dtype
        assert theirs[name].equal(value) and theirs[name].shape == value.shape
    assert metadata["note"] == 'a "b" \n'

    safetensors.torch.save_file(TENSORS, tmp_path / "theirs.safetensors", {"k": "v"})
    ours, metadata = load_tensors(tmp_path / "theirs.safetensors")
    assert metadata == {"k": "v"} and all(ours[n].equal(v) for n, v in TENSORS.items())


def test_any_truncation_is_found(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "test"})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="x.safetensors"):
            verify(path)


def test_any_flipped_bit_is_found(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {"format": "test", "nimg": "1024"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="x.safetensors"):
                verify(path)
    path.write_bytes(whole)
    verify(path)


def test_bytes_after_the_end_are_found(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {})
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="promises"):
        read_header(path)


def test_failure_while_writing_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {})
    before = path.read_bytes()

    def fail_while_writing():
        with TensorWriter(path, {"a": TensorSpec("F32", (4,))}, {}) as writer:
            writer.write(torch.zeros(2))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_writing()
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before


def test_killed_while_writing_leaves_no_file_of_the_final_name(tmp_path):
    script = (
        "import os, signal, torch; from pathlib import Path\n"
        "from edm2lite.tensorfile import TensorSpec, TensorWriter\n"
        f"with TensorWriter(Path({str(tmp_path / 'x.safetensors')!r}),"
        " {'a': TensorSpec('F32', (4,))}, {}) as w:\n"
        "    w.write(torch.zeros(2)); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_disk_is_an_error_and_the_earlier_file_stays(tmp_path, monkeypatch):
    path = save_tensors(tmp_path / "x.safetensors", TENSORS, {})

    def full(descriptor, mode):
        os.close(descriptor)
        return open("/dev/full", mode)

    monkeypatch.setattr("edm2lite.atomic.os.fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"a": torch.zeros(100_000)}, {})
    monkeypatch.undo()
    assert load_tensors(path)[0].keys() == TENSORS.keys()


def test_replacing_keeps_the_earlier_text_when_the_block_fails(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail_in_the_block():
        with replacing(tmp_path / "a.txt") as file:
            file.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_block()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("numel", [1500, 100_000])  # fails when flushed, or while written
def test_a_write_that_fails_names_its_file_and_leaves_the_earlier_one(tmp_path, numel):
    path = save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
    code = f"""
import resource, torch
from pathlib import Path
from edm2lite.tensorfile import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors(Path({str(path)!r}), {{"x": torch.zeros({numel})}}, {{}})
except OSError as error:
    print(error.strerror, error.filename, sep=": ")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == f"File too large: {path}", ran
    assert list(tmp_path.iterdir()) == [path]
    assert load_tensors(path)[0]["x"].shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype):
    for size in (0, 1, 7, 33, 1001):
        values = torch.randn(size).to(dtype)
        assert all_finite(values)
        for bad in (torch.nan, torch.inf, -torch.inf):
            for place in range(0, size, max(1, size // 50)):
                spoiled = values.clone()
                spoiled[place] = bad
                assert not all_finite(spoiled), (size, bad, place)
