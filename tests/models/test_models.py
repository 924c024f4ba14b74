"""Models by name: odd paths, averages that cannot be had, and what identifies the weights."""

import dataclasses
import json
import shutil
import zipfile

import pytest
import safetensors.torch
import torch

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA, reconstruct
from edm2lite.models.loading import load
from edm2lite.network.unet import UNetConfig
from edm2lite.tensorfile import load_tensors

TINY = PrecondConfig(
    backbone=UNetConfig(
        img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=8,
    )
)  # fmt: skip


def test_names_work_where_folders_have_an_at_sign(run_dir, tmp_path):
    folder = tmp_path / "me@lab" / "run"
    shutil.copytree(run_dir, folder)
    assert load(folder).identity == load(run_dir).identity
    assert load(f"{folder}@sigma_rel=0.05").metadata["sigma_rel"] == "0.05"
    with pytest.raises(ValueError, match="is not a file and must name an average"):
        load(tmp_path / "me@lab" / "other.safetensors")
    for name in ("@sigma_rel=0.05", "run@", "run@sigma_rel=0.1,", "run@nimg"):
        with pytest.raises(ValueError, match="must name an average"):
            load(name)
    with pytest.raises(FileNotFoundError, match="no model at .*nowhere; give"):
        load(tmp_path / "nowhere")


def test_a_data_set_or_a_pickle_in_place_of_a_model_is_not_called_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "emoji.zip", "w") as archive:
        archive.writestr("1.png", b"")
    with pytest.raises(ValueError, match="emoji.zip must be a model, it is a ZIP, as data sets"):
        load(tmp_path / "emoji.zip")
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="it is a pickle; convert .* by edm2lite import"):
        load(tmp_path / "net.pkl")


def test_an_average_that_snapshots_cannot_give_is_refused_unless_allowed(run_dir, tmp_path):
    net = Precond(TINY)
    ema = PowerFunctionEMA(net, (0.05, 0.10))
    for nimg in range(1, 21):  # weights that walk far, and are stored twice only
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn_like(p)
        ema.update(nimg)
        if nimg % 10 == 0:
            ema.save_snapshots(tmp_path / "short", extra={"model": TINY.to_json()})
    short = tmp_path / "short"
    with pytest.raises(
        ValueError, match=r"error of [\d.e-]+, above 0.02: .* adding ,max_error="
    ) as e:
        load(f"{short}@sigma_rel=0.25")
    allowed = str(e.value).rpartition("=")[2]
    model = load(f"{short}@sigma_rel=0.25,max_error={allowed}")
    assert 0.02 < float(model.metadata["predicted_error"]) < float(allowed)
    with pytest.raises(ValueError, match="above 1e-09"):
        load(f"{run_dir}@sigma_rel=0.07,max_error=1e-9")
    with pytest.raises(ValueError, match="max_error in .* must be a number, got 'x'"):
        load(f"{run_dir}@sigma_rel=0.07,max_error=x")


def test_identity_tells_weights_apart_and_not_their_form(run_dir, tmp_path):
    built = reconstruct(run_dir, sigma_rel=0.07, out=tmp_path)
    virtual = load(f"{run_dir}@sigma_rel=0.07")
    assert load(built.path).identity == virtual.identity
    assert load(f"{run_dir}@sigma_rel=0.08").identity != virtual.identity
    tensors, metadata = load_tensors(built.path)
    foreign = []
    for change in (0.0, 1e-3):  # files of another writer: no digest
        tensors["unet.out_gain"] = tensors["unet.out_gain"] + change
        safetensors.torch.save_file(
            tensors, tmp_path / f"{change}.safetensors", {"model": metadata["model"]}
        )
        foreign.append(load(tmp_path / f"{change}.safetensors").identity)
    assert foreign[0] != foreign[1]


def test_an_average_is_the_same_on_a_processor_that_rounds_otherwise(run_dir):
    here = load(f"{run_dir}@sigma_rel=0.07")
    inputs = json.loads(here.metadata["inputs"])
    for entry in inputs:
        entry["coefficient"] *= 1 + 1e-13
    there = dataclasses.replace(here, metadata={**here.metadata, "inputs": json.dumps(inputs)})
    assert there.identity == here.identity != load(f"{run_dir}@sigma_rel=0.08").identity
    assert there.earlier_identity != here.earlier_identity
    inputs[0]["digest"] = "0" * 32
    other = dataclasses.replace(here, metadata={**here.metadata, "inputs": json.dumps(inputs)})
    assert other.identity != here.identity
