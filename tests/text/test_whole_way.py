"""From captioned pictures to images of prompts, by tiny models of diffusers and transformers."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from text.text_configs import text_config

from edm2lite.dataset import open_dataset
from edm2lite.models.loading import load
from edm2lite.sweep import read_csv
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.sweep_ema import main as sweep_ema
from edm2lite.training import Trainer

COLORS = {"red": (220, 40, 30), "green": (30, 180, 60), "blue": (30, 60, 210)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eighteen squares and stripes of three colors, with their captions in metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(18):
        color = list(COLORS)[i % 3]
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[2 + i % 4 : 12, 3:13] = COLORS[color]
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        text = [f"a {color} square", f"{color} square {i}"]
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    """Folder of an untrained AutoencoderKL that halves the sides."""
    import safetensors.torch  # noqa: F401  (diffusers 0.30 saves by it without importing it)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model.save_pretrained(folder)
    return folder


def run(*words, command=edm2lite):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_captions_go_the_whole_way(name, pictures, tiny_vae, clip, t5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, pooled = {"clip": (clip, 12), "t5": (t5, 16)}[name]
    run("dataset", "convert", pictures, "pictures.zip", "--resolution", 16)
    run("dataset", "encode", "pictures.zip", "latents", "--vae", tiny_vae)
    words = ("--encoder", f"transformers:{folder}", "--tokens", 16, "--out", "captions")
    assert "21 captions in captions" in run("dataset", "encode-captions", "latents", *words)

    told = {"pooled": pooled, "tokens": 16, "num_tokens": 16, "attn_resolutions": [8]}
    config = text_config(
        None, "data.source=latents", "encoder={kind: latents}", "data.captions=captions",
        "net.backbone.img_channels=4", f"net.backbone.text={json.dumps(told)}", "total_nimg=64",
        "batch_size=16", "status_nimg=64", "snapshot_nimg=16", "checkpoint_nimg=64",
        "optim.rampup_nimg=0",
    )  # fmt: skip
    Trainer(config, tmp_path / "run", torch.device("cpu")).train()
    assert load("run").text_encoder.source == str(folder)

    held_out = ("--metric", "loss", "--data", "latents", "--num", 18, "--max-error", 1)
    run("run", "--sigma-rel", "0.1,0.15", *held_out, "--out", "sweep", command=sweep_ema)
    assert {point.sigma_rel for point in read_csv("sweep/sweep.csv")} == {None, 0.1, 0.15}
    prompts = ("--prompt", "a red square", "--prompt", "a blue square", "--steps", 4)
    average = "run@sigma_rel=0.15"
    run("generate", average, *prompts, "--guidance", 2, "--out", "a", "--grid", "a.png")
    run("generate", average, *prompts, "--guidance", 2, "--out", "b", "--seeds", "1")
    first, second = open_dataset("a"), open_dataset("b")
    assert first.captions.texts == [("a red square",), ("a blue square",)]
    assert (first.images([1]) == second.images([0])).all() and first.images([0]).std() > 0
