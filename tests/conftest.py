"""Shared fixtures: quiet threads, and one small training run on digits."""

import os

import pytest
import torch

from edm2lite.training.config import RunConfig, load_config
from edm2lite.training.trainer import Trainer

pytest_plugins = ["data.fixtures"]
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start; tensors here are tiny
torch.set_num_threads(1)

TINY = (
    "net.backbone.model_channels=16",
    "net.backbone.head_channels=16",
    "batch_size=32",
    "total_nimg=1280",
    "status_nimg=320",
    "snapshot_nimg=160",
    "checkpoint_nimg=320",
    "optim.rampup_nimg=320",
)


def tiny_config(*overrides: str) -> RunConfig:
    """The digits preset, small enough to train for 40 steps in about a second."""
    return load_config("digits", (*TINY, *overrides))


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A finished run: 8 snapshot times of two averages."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    Trainer(tiny_config(), folder, torch.device("cpu")).train()
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
