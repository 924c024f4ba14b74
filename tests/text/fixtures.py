"""Folders of tiny text encoders, made once."""

import pytest
from text.tiny_encoders import save_bert, save_clip, save_t5


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
