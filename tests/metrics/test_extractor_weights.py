"""Weights files of extractors: what is no tensor is refused by its bytes, and nothing runs."""

import os
import pickle
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from edm2lite.interop.torch_files import read_tensors
from edm2lite.metrics.extractor_weights import tensors_alone
from edm2lite.metrics.extractors import open_extractor

NAMES = ["inception-v3-compat", "vgg16", "clip-vit-b-32", "dinov2-vit-s-14"]


class Runs:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Program(nn.Module):
    """TorchScript that writes a file when it is loaded."""

    @torch.jit.export
    def __getstate__(self):
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.training = state[1]
        print("TORCHSCRIPT CODE RAN")

    def forward(self, x):
        return x


@pytest.fixture
def hostile(tmp_path):
    """Files that run code, each under names of both kinds."""
    canary = str(tmp_path / "executed")
    whole, legacy, program = (tmp_path / f"{k}.pt" for k in ("whole", "legacy", "program"))
    torch.save({"w": torch.ones(1), "x": Runs(canary)}, whole)
    legacy.write_bytes(pickle.dumps({"w": Runs(canary)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still opened
        torch.jit.save(torch.jit.script(Program()), program)
    both = tmp_path / "both.pt"  # tensors for one reader, a program for another
    torch.save({"w": torch.ones(1)}, both)
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(both, "a") as target:
        for name in source.namelist():
            if "code/" in name or "constants.pkl" in name:
                target.writestr(name.replace("program/", "both/"), source.read(name))
    files = [whole, legacy, program, both]
    for path in files[:]:
        files.append(path.with_suffix(".safetensors"))
        files[-1].write_bytes(path.read_bytes())
    return canary, files


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_runs_code_does_not_run_it_whatever_its_name(hostile, name, capfd):
    canary, files = hostile
    for path in files:
        with pytest.raises(ValueError, match=path.name) as caught:
            open_extractor(name, path)
        assert (
            "nothing in it was executed" in str(caught.value)
            or "it is not;" in str(caught.value)
            or "does not fit" in str(caught.value)
        )
    assert not os.path.exists(canary) and "TORCHSCRIPT" not in "".join(capfd.readouterr())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(files[2])  # it would have
    assert "TORCHSCRIPT CODE RAN" in capfd.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_tensors_are_read_by_their_bytes_and_handed_on_alone(tmp_path, suffix):
    tensors = {"a": torch.randn(3), "b": torch.arange(4)}
    for kind in ("torch", "safetensors"):
        path = tmp_path / f"{kind}{suffix}"
        if kind == "torch":
            torch.save(tensors, path)
        else:
            safetensors.torch.save_file(tensors, path)
        with tensors_alone("inception-v3-compat", path) as handed:
            found = torch.load(handed, weights_only=True)
        assert all(found[name].equal(value) for name, value in tensors.items())
        assert not handed.exists()


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.randn(50)}, path)
    data, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(200):
        damaged = bytearray(data)
        at = int(torch.randint(len(data), (), generator=generator))
        damaged[at : at + 3] = b"\x80\x00R"
        path.write_bytes(damaged if at % 2 else damaged[:at])
        try:
            read_tensors(path)
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and path.name in message, message
