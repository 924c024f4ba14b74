"""``edm2lite adapters`` on a run of digits: one file on its way through all commands."""

import shlex

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edm2lite import generate, load
from edm2lite.interop.adapter_export import plain_weights
from edm2lite.models.adapters import Adapter, read_adapter, save_adapter
from edm2lite.sampling.settings import Sampling
from edm2lite.tensorfile import read_header
from edm2lite.tools.edm2lite import main

LAYERS = ("unet.emb_label", "unet.enc.8x8_block0.conv_res0")
SHORT = Sampling(num_steps=2)


def run(line):
    return CliRunner().invoke(main, ["adapters", *shlex.split(str(line))])


def done(line):
    result = run(line)
    assert result.exit_code == 0, result.output
    return result.output


def refused(line, message):
    result = run(line)
    assert result.exit_code == 1, result.output
    (text,) = result.output.splitlines()
    assert text.startswith("Error: ") and message in text, text


@pytest.fixture
def place(tmp_path, run_dir, monkeypatch):
    """The current folder, with a base model and an adapter of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(run_dir)
    base, tensors = load("base"), {}
    for i, name in enumerate(LAYERS):
        out, *inner = base.net.get_submodule(name).weight.shape
        generator = torch.Generator().manual_seed(i)
        tensors[f"{name}.down"] = torch.randn(2, *inner, generator=generator)
        tensors[f"{name}.up"] = torch.randn(out, 2, generator=generator)
    scales = dict.fromkeys(LAYERS, 0.25)
    save_adapter("a.st", Adapter("a", "lora", tensors, "base", base.identity, scales))
    return tmp_path


def images(*arguments, **options):
    device = torch.device("cpu")
    return generate(*arguments, range(3), classes=1, sampling=SHORT, device=device, **options)


def test_a_merged_model_makes_the_images_of_its_parts(place):
    assert done("merge base --adapter a.st:0.5 --adapter a.st:0.25 --out m.st") == "m.st\n"
    expected = images("base", adapters=["a.st:0.75"])
    assert images("m.st").equal(expected) and not images("base").equal(expected)
    assert read_header(place / "m.st").metadata["base"] == "base"
    assert load("m.st").identity != load("base").identity
    done("merge base --adapter a.st:0 --out zero.st")
    ours, theirs = load_file("zero.st"), load_file(place / "base" / "last.safetensors")
    assert all(ours[name].equal(value) for name, value in theirs.items())


@pytest.mark.parametrize("tool", ["kohya", "peft", "diffusers"])
def test_there_and_back(place, tool):
    told = done(f"export base --adapter a.st:0.5 --to {tool} --out out")
    assert told == "out: 2 layers of rank 2 to 2, relative error 0.0e+00 in all, at most 0.0e+00 in a layer\n"  # fmt: skip  # noqa: E501
    description = done("info out --base base")
    assert f"lora ({tool})" in description and "fits" in description
    assert "inside-wn" in description and "2 layers of base" in description
    assert done("import out --base base --out b.st") == "b.st\n"
    assert images("base", adapters=["b.st"]).equal(images("base", adapters=["a.st:0.5"]))
    assert read_adapter("b.st").base == "base"


def test_a_file_that_does_not_say_where_it_adds(place):
    done("export base --adapter a.st --to kohya --out k.st")
    save_file(load_file("k.st"), "plain.st")  # without metadata, as trained elsewhere
    description = done("info plain.st --base base")
    assert "not stated: inside or outside" in description and "2 layers of base" in description
    refused("import plain.st --base base --out b.st", "and adds them where, it does not say")
    done("import plain.st --base base --inside-wn --out b.st")
    assert images("base", adapters=["b.st"]).equal(images("base", adapters=["a.st"]))


def test_tools_without_weight_normalization(place):
    told = done("export base --adapter a.st --to kohya --outside-wn --rank 3 --out x.st")
    assert "x.st: 2 layers of rank 3 to 3, relative error" in told
    refused("import x.st --base base --out y.st", "must add its changes inside weight normalizati")
    assert done("export base --adapter a.st --to weights --out w.st") == "w.st\n"
    merged = plain_weights(load("base", adapters=["a.st"]).net)
    assert all(merged[name].equal(value) for name, value in load_file("w.st").items())
    assert not (place / "y.st").exists()


def test_an_adapter_is_described_and_factorized(place):
    lines = dict(line.split(maxsplit=1) for line in done("info a.st").splitlines())
    assert lines["kind"] == "lora" and lines["layers"] == lines["rank"] == "2"
    assert lines["base"].startswith("base (") and "size" in lines
    assert "rank 1, relative error" in done("factorize a.st --rank 1 --out thin.st")
    assert set(read_adapter("thin.st").ranks.values()) == {1}


def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(place):
    before = sorted(place.iterdir())
    torch.save({"string_to_param": {"*": torch.ones(1, 8)}}, "cat.pt")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1)}, "odd.st")
    for line, message in (
        ("info nowhere", "there is no file nowhere"),
        ("info cat.pt --base base", "cat.pt must be used with a model that is told text"),
        ("import cat.pt --base base --out new", "cat.pt must be used with a model that is told"),
        ("import odd.st --base base --out new", "it has no x; give the base that the file was"),
        ("merge base --adapter nowhere --out new", "nowhere"),
        ("merge base --adapter a.st:inf --out new", "must be finite"),
        ("merge base --adapter cat.pt --out new", "cat.pt"),
        ("export base --adapter a.st --to peft --outside-wn --out new", "a rank or a largest err"),
        ("export base --adapter a.st:0 --to peft --rank 2 --out new", "these change nothing"),
        ("factorize base --rank 2 --out new", "base must be an adapter"),
    ):
        refused(line, message)
    for name in ("cat.pt", "odd.st"):
        (place / name).unlink()
    assert sorted(place.iterdir()) == before
    for line in (
        "export base --adapter a.st --to weights --rank 2 --out new",
        "export base --adapter a.st --to kohya --rank 2 --max-error 0.1 --out new",
        "merge base --out new",
    ):
        assert run(line).exit_code == 2
