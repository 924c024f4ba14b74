"""Grids of samples from the averages."""

from functools import partial

import numpy as np
import torch
from tiny_run import tiny_config

from edm2lite.training import distributed
from edm2lite.training.samples import sample_grids, tile, told_in_grid
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")


def test_grids_show_samples_of_each_average_and_leave_the_network_alone(tmp_path):
    trainer = Trainer(tiny_config("total_nimg=320"), tmp_path / "a", CPU)
    trainer.train()
    before = {n: p.clone() for n, p in trainer.net.named_parameters()}

    def grids(count):
        told = told_in_grid(trainer.config.net.backbone.conditions, trainer.dataset, count)
        parts = trainer.net, trainer.ema, trainer.config.encoder, told
        return dict(sample_grids(*parts, count=count, num_steps=2, batch_size=4))

    whole = grids(8)
    assert list(whole) == [0.05, 0.10]
    assert not np.array_equal(whole[0.05], whole[0.10])
    assert trainer.net.training
    assert all(p.equal(before[n]) for n, p in trainer.net.named_parameters())
    first = grids(2)
    side = first[0.05].shape[0]  # enlarged; two images side by side are the first two of eight
    small = first[0.05][:: side // 8, :: side // 8]
    scale = whole[0.05].shape[1] // 32
    np.testing.assert_array_equal(small, whole[0.05][::scale, ::scale][:8, :16])


def test_shares_of_ranks_make_the_grid_of_one_process(tmp_path, monkeypatch):
    """Each of three ranks draws three of seven images, the last one copies of the seventh."""
    trainer = Trainer(tiny_config("total_nimg=320"), tmp_path / "a", CPU)
    told = told_in_grid(trainer.config.net.backbone.conditions, trainer.dataset, 7)
    parts = trainer.net, trainer.ema, trainer.config.encoder, told
    grids = partial(sample_grids, *parts, count=7, num_steps=2, batch_size=2)
    alone, shares = dict(grids()), []
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "gather", lambda share: shares.append(share) or [share])
    for rank in (2, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert not list(grids())
    others = iter(zip(shares[2:], shares[:2], strict=True))  # of rank 1 and 2, by average
    monkeypatch.setattr(distributed, "gather", lambda share: [share, *next(others)])
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    together = dict(grids())
    trainer.close()
    for sigma_rel, picture in alone.items():
        np.testing.assert_array_equal(together[sigma_rel], picture)


def test_a_picture_holds_the_images_row_by_row():
    images = np.arange(5 * 3 * 200 * 100, dtype=np.uint32).astype(np.uint8).reshape(5, 3, 200, 100)
    picture = tile(images)
    assert picture.shape == (400, 400, 3)  # four columns, and too large to be enlarged
    np.testing.assert_array_equal(picture[200:400, 0:100], images[4].transpose(1, 2, 0))
    assert not picture[200:, 100:].any()
