"""Shared fixtures: quiet threads, and one small training run on digits."""

import os

import pytest
import torch
from tiny_run import tiny_config

from edm2lite.training.trainer import Trainer

pytest_plugins = ["data.fixtures", "text.fixtures"]
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start; tensors here are tiny
torch.set_num_threads(1)


def pytest_configure(config):
    """Keep the tests on the CPU, whose bits they compare; ``-m cuda`` runs those for a GPU."""
    if config.getoption("markexpr") != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A finished run: 8 snapshot times of two averages."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    Trainer(tiny_config(), folder, torch.device("cpu")).train()
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
