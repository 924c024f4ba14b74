"""Files of textual inversion and hypernetworks: read as data, whatever they ask for."""

import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from edm2lite.interop.adapter_import import import_adapter
from edm2lite.interop.adapter_info import describe
from edm2lite.interop.hypernetworks import is_hypernetwork, read_hypernetwork
from edm2lite.interop.textual_inversion import read_learned_tokens


class Runs:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def refused(read, path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def web_ui(vectors, **more):
    return {
        "string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "cat", "step": 99,
        "sd_checkpoint": "0123abcd", "sd_checkpoint_name": None, **more,
    }  # fmt: skip


def test_files_of_diffusers(tmp_path):
    several, one = torch.randn(3, 8), torch.randn(8)
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat>": several, "<dog>": one}, path)
    found = read_learned_tokens(path)
    assert found.vectors["<cat>"].equal(several) and found.vectors["<dog>"].equal(one[None])
    torch.save({"<cat>": several.half()}, tmp_path / "learned_embeds.bin")
    (vectors,) = read_learned_tokens(tmp_path / "learned_embeds.bin").vectors.values()
    assert vectors.equal(several.half().float())


@pytest.mark.parametrize("wrap", [dict, torch.nn.ParameterDict])
def test_files_of_the_web_ui(tmp_path, wrap):
    vectors, path = torch.randn(2, 8), tmp_path / "fluffy.pt"
    content = web_ui(vectors)
    content["string_to_param"] = wrap({"*": torch.nn.Parameter(vectors)})
    content["string_to_token"] = {"*": torch.tensor(265)}  # an integer in a tensor, in older files
    torch.save(content, path)
    found = read_learned_tokens(path)
    assert found.vectors["fluffy"].equal(vectors)
    assert found.notes == {"name": "cat", "step": "99", "sd_checkpoint": "0123abcd"}
    told = describe(path)
    assert told["kind"] == "textual inversion" and told["fluffy"] == "2 x 8"
    save_file({"emb_params": vectors}, tmp_path / "soft.safetensors")
    assert read_learned_tokens(tmp_path / "soft.safetensors").vectors["soft"].equal(vectors)


def test_what_is_no_vector_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for value, message in (
        (torch.ones(1, 2, 3), r"must hold vectors \[n, length\] or \[length\] of tokens, x is"),
        (torch.ones(()), "must hold vectors"),
        (torch.ones(2, 0), "must hold vectors"),
        (torch.ones(2, 3).int(), "must hold vectors"),
        (torch.full((2, 3), torch.nan), "must hold finite numbers"),
    ):
        save_file({"x": value}, path)
        refused(read_learned_tokens, path, message)
    torch.save(web_ui([1, 2]), tmp_path / "b.pt")
    refused(read_learned_tokens, tmp_path / "b.pt", r"must hold a tensor as \*, holds list")
    torch.save([1], tmp_path / "c.pt")
    refused(read_learned_tokens, tmp_path / "c.pt", "must hold a mapping as its content")
    (tmp_path / "d.pt").write_bytes(b"x" * 100)
    refused(read_learned_tokens, tmp_path / "d.pt", "d.pt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_learned_tokens(tmp_path / "none.pt")


def network(width, seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width))
    return {f"linear.{name}": value for name, value in net.state_dict().items()}


def hypernetwork(**more):
    nets = {width: (network(width, 1), network(width, 2)) for width in (8, 4)}
    told = {"step": 7, "name": "style", "layer_structure": [1, 2, 1], "activation_func": "linear"}
    return {**nets, **told, "is_layer_norm": False, "sd_checkpoint": None, **more}


def test_hypernetworks_are_read(tmp_path):
    path = tmp_path / "style.pt"
    torch.save(hypernetwork(), path)
    found = read_hypernetwork(path)
    assert found.widths == [4, 8] and found.notes["layer_structure"] == [1, 2, 1]
    for width in (4, 8):
        for part, seed in (("keys", 1), ("values", 2)):
            for name, value in network(width, seed).items():
                assert found.tensors[width, part][name].equal(value)
    assert is_hypernetwork(path) and describe(path)["widths"] == "4, 8"
    for content, message in (
        (
            hypernetwork(**{"x": 1}) | {8: (network(8, 1),)},
            "networks for keys and values of width 8",
        ),
        ({8: (network(8, 1), {})}, "must hold layers as values of width 8"),
        ({8: (network(8, 1), {"linear.0.weight": 1})}, "must hold a tensor as linear.0.weight of"),
        (
            {8: (network(8, 1), {"a.weight": torch.full((2,), torch.inf)})},
            "must hold finite numbers",
        ),
        ({"step": 1}, "must hold networks by their width, it holds none"),
    ):
        torch.save(content, path)
        refused(read_hypernetwork, path, message)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "place", ["root", "beside", "tensor", "name", "network", "key", "parameters"]
)
def test_files_that_want_to_run_code_are_refused(tmp_path, place, protocol):
    canary = tmp_path / "executed"
    evil = Runs(canary)
    tokens, nets = web_ui(torch.ones(1, 4)), hypernetwork()
    if place == "root":
        tokens = nets = evil
    elif place == "parameters":
        tokens["string_to_param"] = nets[8] = evil
    elif place == "tensor":
        tokens["string_to_param"]["*"] = evil
        nets[8][0]["linear.0.weight"] = evil
    elif place == "network":
        tokens["string_to_token"] = evil
        nets[8] = (evil, evil)
    elif place == "key":
        tokens[evil] = nets[evil] = 1
    else:
        tokens[place] = nets[place] = evil
    path = tmp_path / "a.pt"
    for content, read in ((tokens, read_learned_tokens), (nets, read_hypernetwork)):
        torch.save(content, path, pickle_protocol=protocol)
        refused(read, path, r"asks for posix.mkdir, which does not belong in it; nothing of it was")
        refused(describe, path, "asks for posix.mkdir")
        assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the trap works"


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Runs(tmp_path / "executed")))
    refused(read_learned_tokens, path, "a.pt")
    refused(read_hypernetwork, path, "must be a file of torch.save")
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_used_here_is_refused_with_the_reason(tmp_path):
    from test_adapter_exchange import BASE

    path = tmp_path / "style.pt"
    torch.save(hypernetwork(), path)
    message = "cross-attention of width 4, 8 is told, .*tune.kind: hypernetwork"
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be used with")):
        import_adapter(path, BASE)
    refused(lambda path: import_adapter(path, BASE), path, message)
