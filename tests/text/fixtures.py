"""Folders of tiny text encoders, made once."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from text.text_configs import text_config
from text.tiny_encoders import save_bert, save_clip, save_t5

from edm2lite.training.trainer import Trainer


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Folder of a CLIP text model with a projection."""
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """Folder of a T5 encoder."""
    return save_t5(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="session")
def encoder_folders(clip, t5, tmp_path_factory):
    """Folders of text encoders of all kinds."""
    place = tmp_path_factory.mktemp("encoders")
    return {
        "clip with projection": clip,
        "clip": save_clip(place / "clip", "CLIPTextModel"),
        "whole clip": save_clip(place / "whole", "CLIPModel"),
        "t5": t5,
        "bert": save_bert(place / "bert"),
    }


@pytest.fixture(scope="session")
def table(clip, tmp_path_factory):
    """Folder of a table of embeddings of eight numbers."""
    folder = tmp_path_factory.mktemp("table") / "table"
    folder.mkdir()
    shutil.copy(clip / "tokenizer.json", folder)
    values = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": values}, folder / "table.safetensors")
    return folder


@pytest.fixture(scope="session")
def text_run(table, tmp_path_factory):
    """A finished run on captioned digits, which are told in words alone."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    Trainer(text_config(table), folder, torch.device("cpu")).train()
    return folder
