"""Models with fewer parameters than there are stored averages, as people try things out with."""

import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots, reconstruct
from edm2lite.ema.calibration import read_sample


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_predicted_errors_of_few_parameters_are_of_the_size_of_the_actual_ones(tmp_path, dtype):
    """Once 3e3 in half precision: elements were drawn again and again to make up a sample."""
    model = torch.nn.Linear(20, 1)
    tracked = 0.05, 0.1
    lengths = 0.07, 0.13
    ema = PowerFunctionEMA(model, tracked)
    directly = PowerFunctionEMA(model, lengths)
    for step in range(1, 601):
        x = torch.randn(32, 20)
        loss = (model(x) - x.sum(1, keepdim=True) - torch.randn(32, 1)).square().mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
                p.grad = None
        ema.update(32 * step)
        directly.update(32 * step)
        if step % 20 == 0:
            ema.save_snapshots(tmp_path, dtype=getattr(torch, dtype))
    for result in reconstruct(tmp_path, sigma_rel=lengths):
        truth = directly.state_dict_of(result.sigma_rel)
        missed = sum(((result.state_dict[n] - v) ** 2).sum() for n, v in truth.items()) ** 0.5
        error = (missed / sum((v**2).sum() for v in truth.values()) ** 0.5).item()
        # 21 numbers are few to learn from, and few to have an error: a factor of 4 either way
        assert error / 4 < result.predicted_error < 4 * error


def test_every_element_of_a_small_model_is_seen_once(tmp_path):
    model = torch.nn.Linear(5, 3)
    ema = PowerFunctionEMA(model, (0.1,))
    for k in range(1, 4):
        ema.update(k)
        ema.save_snapshots(tmp_path)
    sample = read_sample(list_snapshots(tmp_path))
    expected = torch.cat([v.flatten() for v in ema.state_dict_of(0.1).values()]).double()
    assert sorted(sample[-1].tolist()) == sorted(expected.tolist())
