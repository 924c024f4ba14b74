"""The configuration of the small run that tests train."""

from edm2lite.training.config import RunConfig, load_config

TINY = (
    "net.backbone.model_channels=16",
    "net.backbone.head_channels=16",
    "batch_size=32",
    "total_nimg=1280",
    "status_nimg=320",
    "snapshot_nimg=160",
    "checkpoint_nimg=320",
    "optim.rampup_nimg=320",
    "sample_nimg=0",
)


def tiny_config(*overrides: str) -> RunConfig:
    """The digits preset, small enough to train for 40 steps in about a second."""
    return load_config("digits", (*TINY, *overrides))


def ref(reference):
    """The words by which commands are given a reference, with the weights file beside it."""
    return "--ref", reference, "--weights", reference.parent / "classifier.safetensors"
