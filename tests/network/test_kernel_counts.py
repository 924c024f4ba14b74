"""benchmarks/kernels.py counts what a GPU would run; here of a network of five blocks."""

from pathlib import Path

import pytest

from edm2lite.network.unet import UNetConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNET = UNetConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=16, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), head_channels=16,
)  # fmt: skip


@pytest.mark.slow
def test_weights_once_per_step_need_fewer_kernels_in_a_micro_batch(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kernels

    before, _ = kernels.count(UNET, 2, once=False)
    now, weights = kernels.count(UNET, 2, once=True)
    for then, later in zip(before, now, strict=True):  # forward and backward
        assert 0 < later.generated < 0.75 * then.generated
        assert later.library == then.library > 15  # convolutions, products and attention
    refresh, *project = weights
    assert refresh.generated > 15 and len(project) == 2
