"""Small models, and the command that generates, for tests."""

import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import torch
from click.testing import CliRunner

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import load
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.images import ImageGenerator
from edm2lite.seeding import Purpose, rng
from edm2lite.tools.edm2lite import main as edm2lite


def run(*arguments):
    return CliRunner().invoke(edm2lite, ["generate", *map(str, arguments)])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fail(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def on_two_ranks(*arguments):
    """What each of two processes says that generate together, as under torchrun."""
    env = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "edm2lite.tools.generate", *map(str, arguments)]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": r}, stdout=subprocess.PIPE) for r in "01"
    ]
    try:
        said = [rank.communicate(timeout=60)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    return said


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


class Raw(PixelEncoder):
    """Leaves what the sampler made as it is, so that a test sees every bit."""

    def decode(self, x):
        return x


def raw(name):
    """A model by name, or a loaded one, whose images are the numbers that the sampler made.

    It may be its own unconditional guide, as if it had been trained for that.
    """
    model = load(name) if isinstance(name, str) else name
    metadata = {**model.metadata, "label_dropout": "0.1"}
    return dataclasses.replace(model, encoder=Raw(), metadata=metadata)


def images(model, seeds, **options):
    return torch.cat([batch.images for batch in ImageGenerator(model, seeds, **options)])


def save_net(path, **changes):
    """A file with an untrained network whose output is not zero."""
    config = {
        "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 16,
        "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (), "head_channels": 16,
    }  # fmt: skip
    net = Precond(PrecondConfig(backbone=UNetConfig(**{**config, **changes})))
    net.backbone.out_gain.data.fill_(1.0)
    encoder = {"encoder": PixelEncoder(shift=77.83, scale=191.79).to_json()}
    return str(net.save(path, encoder))


def noise_of(seeds):
    """The noise that images [1, 8, 8] of these seeds begin with."""
    rows = [rng(s, 0, Purpose.GENERATION).standard_normal((1, 8, 8), np.float32) for s in seeds]
    return torch.from_numpy(np.stack(rows))


def solved_by_hand(denoise, x, sigmas):
    """Heun's method written out; ``denoise(x, sigma, step)``."""
    x = x * sigmas[0]
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoise(x, sigma, i)) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + (ahead - denoise(ahead, sigma_next, i)) / sigma_next) / 2
        x = x + (sigma_next - sigma) * slope
    return x
