"""Encoding in one go, for tests."""

from edm2lite.dataset import open_dataset
from edm2lite.dataset.encode import finish, write_shards
from edm2lite.dataset.encode_plan import EncodePlan
from edm2lite.models.autoencoder import load_autoencoder


def encode(source, dest, vae, shard_images=10, **options):
    """Encode in one go; returns the plan."""
    plan = EncodePlan(
        open_dataset(source), dest, load_autoencoder(str(vae), "cpu"),
        shard_images=shard_images, **options,
    )  # fmt: skip
    write_shards(plan)
    finish(plan)
    return plan
