"""What is said, or refused, where a command could be meant in another way."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sampling.generating import save_net
from tiny_run import tiny_config

from edm2lite import load
from edm2lite.dataset import open_dataset
from edm2lite.ema import reconstruct
from edm2lite.models.hub import save_pretrained
from edm2lite.sampling import Sampling, generate
from edm2lite.tensorfile import load_tensors, save_tensors
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.trainer import Trainer

FEW = Sampling(num_steps=1, guidance=2.0)
NEVER_SEEN = "was trained without label dropout, and has never seen an image without its conditions"


def run(*words):
    result = CliRunner().invoke(edm2lite, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def trained(folder, *changes):
    config = tiny_config("total_nimg=160", "checkpoint_nimg=160", *changes)
    Trainer(config, folder, torch.device("cpu")).train()
    return folder


def test_a_bare_run_says_that_it_means_raw_weights(run_dir, tmp_path):
    note = (
        f"{run_dir}: raw last weights; averages: {run_dir}@sigma_rel=0.10; the run holds snapshots"
        " of 0.05 and 0.1 up to nimg=1280"
    )
    sampled = ("--seeds", "0-1", "--steps", 1, "--out", tmp_path / "images")
    loss = ("--metrics", "loss", "--data", "digits", "--num", 8)
    exported = ("--license", "mit", "--out", tmp_path / "exported")
    for words in (("generate", run_dir, *sampled), ("evaluate", run_dir, *loss),
                  ("export", run_dir, *exported)):  # fmt: skip
        result = run(*words)
        assert note in result.stderr.splitlines(), words
        assert note not in result.stdout
    average = f"{run_dir}@sigma_rel=0.1"
    guided = ("--guide", run_dir, "--guidance", 2, "--out", tmp_path / "guided")
    assert note in run("generate", average, *sampled[:4], *guided).stderr
    for words in (
        (average, "--out", tmp_path / "a"),
        (tmp_path / "exported", "--out", tmp_path / "b"),
    ):
        result = run("generate", *words, "--seeds", 0, "--steps", 1)
        assert "raw last weights" not in result.stderr, words


def test_raw_weights_are_named_where_snapshots_are_gone_or_damaged(run_dir, tmp_path):
    (tmp_path / "last.safetensors").symlink_to(run_dir / "last.safetensors")
    words = ("generate", tmp_path, "--seeds", 0, "--steps", 1, "--out", tmp_path / "images")
    assert f"{tmp_path}@sigma_rel=0.10\n" in run(*words).stderr


def test_a_network_trained_without_label_dropout_is_not_its_own_unconditional_guide(
    run_dir, tmp_path
):
    built = reconstruct(run_dir, sigma_rel=0.1, out=tmp_path / "ema")
    exported = save_pretrained(run_dir, tmp_path / "exported", license="mit")
    snapshot = min((run_dir / "snapshots").glob("*.safetensors"))
    for name in (run_dir, f"{run_dir}@sigma_rel=0.1", built.path, exported, snapshot):
        assert load(name).metadata["label_dropout"] == "0.0"
        with pytest.raises(ValueError, match=NEVER_SEEN):
            generate(name, [0], sampling=FEW, guide="unconditional")
    out = tmp_path / "out"
    for guide in ("unconditional", "unlabelled"):  # codespell:ignore unlabelled
        words = ("generate", run_dir, "--guide", guide, "--guidance", 3, "--out", out)
        result = CliRunner().invoke(edm2lite, [str(word) for word in words])
        line = result.output.splitlines()[-1]
        assert result.exit_code == 1 and NEVER_SEEN in line
        assert "give a weaker model as the guide, or train with data.label_dropout" in line
        assert not out.exists()
    assert len(generate(run_dir, [0], sampling=FEW, guide=snapshot)) == 1


def test_a_network_trained_with_label_dropout_is_its_own_guide_without_a_word(tmp_path):
    folder = trained(tmp_path / "run", "data.label_dropout=0.25")
    assert load(folder).metadata["label_dropout"] == "0.25"
    name = f"{folder}@sigma_rel=0.1,max_error=1"
    words = ("--guide", "unconditional", "--guidance", 2, "--seeds", 0, "--steps", 1)
    assert "dropout" not in run("generate", name, *words, "--out", tmp_path / "a").stderr
    card = save_pretrained(folder, tmp_path / "card", license="mit") / "README.md"
    assert "| label dropout in training | `0.25` |" in card.read_text()


def test_images_without_a_class_are_seen_unconditionally_too(tmp_path, monkeypatch):
    digits = open_dataset("digits")
    some = np.where(np.arange(1797) % 3, digits.labels, -1)
    table = dataclasses.replace(digits.table, values=some)
    unlabeled = dataclasses.replace(digits, table=table)
    monkeypatch.setattr("edm2lite.training.preparation.open_dataset", lambda source: unlabeled)
    folder = trained(tmp_path / "run")
    assert load(folder).metadata["unlabeled"] == "599"
    assert len(generate(folder, [0], sampling=FEW, guide="unconditional")) == 1


def test_a_file_that_does_not_know_its_label_dropout_says_so(tmp_path):
    path = save_net(tmp_path / "net.safetensors")
    words = ("--guide", "unconditional", "--guidance", 2, "--seeds", 0, "--steps", 1)
    result = run("generate", path, *words, "--out", tmp_path / "a")
    expected = f"{path}: its file does not say whether it was trained with label dropout"
    assert result.stderr.count(expected) == 1


def test_another_size_than_in_training_is_said(run_dir, tmp_path):
    name = f"{run_dir}@sigma_rel=0.1"
    for size, note in (
        ("16x8", "its training resolution is 8 x 8, it generates 16 x 8"),
        ("8x8", None),
    ):
        out = tmp_path / size
        result = run("generate", name, "--size", size, "--seeds", 0, "--steps", 1, "--out", out)
        lines = [line for line in result.stderr.splitlines() if "resolution" in line]
        assert len(lines) == (note is not None), result.stderr
        assert note is None or lines[0].startswith(f"{name}: {note}")


def test_runs_of_before_are_continued_and_then_know_their_label_dropout(tmp_path):
    folder = trained(tmp_path / "run")
    for path in (folder / "snapshots").glob("*.safetensors"):
        tensors, metadata = load_tensors(path)
        del metadata["label_dropout"]
        save_tensors(path, tensors, metadata)
    assert "label_dropout" not in load(f"{folder}@sigma_rel=0.1,max_error=1").metadata
    Trainer(
        tiny_config("total_nimg=320", "checkpoint_nimg=160"), folder, torch.device("cpu")
    ).train()
    assert load(f"{folder}@sigma_rel=0.1,max_error=1").metadata["label_dropout"] == "0.0"
