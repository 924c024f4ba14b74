"""What docs/compare.md says of the averages of other tools, seen on what is installed."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edm2lite.ema import PowerFunctionEMA

pytest.importorskip("diffusers", reason="pip install 'edm2lite[test]'")
pytest.importorskip("ema_pytorch", reason="pip install 'edm2lite[test]'")


def trackers(model):
    """Name -> (update, current state) of each tool's average of the model."""
    from diffusers.training_utils import EMAModel
    from ema_pytorch import EMA

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    shadow = EMAModel(model.parameters(), decay=0.5)
    other = EMA(model, beta=0.5, update_after_step=0, update_every=1)
    return {
        "torch": (
            lambda: averaged.update_parameters(model),
            lambda: averaged.module.state_dict(),
        ),
        "diffusers": (
            lambda: shadow.step(model.parameters()),
            lambda: dict(enumerate(shadow.shadow_params)),
        ),
        "ema-pytorch": (other.update, lambda: other.ema_model.state_dict()),
    }


def test_weights_that_are_not_finite_once_stay_in_the_averages_of_others():
    model = torch.nn.Linear(1, 1, bias=False)
    ours = PowerFunctionEMA(model, (0.1,))
    others = trackers(model)
    for k in range(1, 201):
        model.weight.data.fill_(float("nan") if k == 5 else 1.0)
        ours.update(k)
        for update, _ in others.values():
            update()
    for name, (_, state) in others.items():
        assert not any(v.isfinite().all() for v in state().values()), name
    assert ours.num_refused == 1 and ours.state_dict_of(0.1)["weight"].item() == 1


def test_averages_of_others_are_of_the_type_of_the_weights():
    model = torch.nn.Linear(2, 2).to(torch.bfloat16)
    for name, (update, state) in trackers(model).items():
        update()
        assert {v.dtype for v in state().values()} == {torch.bfloat16}, name
    ours = PowerFunctionEMA(model, (0.1,))
    ours.update(1)
    assert {v.dtype for v in ours.state_dict_of(0.1).values()} == {torch.float32}


def test_buffers_are_kept_as_the_page_says():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.register_buffer("seen", torch.zeros(1))

    model = Counting()
    ours, others = PowerFunctionEMA(model, (0.1,)), trackers(model)
    for k in range(1, 11):
        model.seen.fill_(k)
        ours.update(k)
        for update, _ in others.values():
            update()
    assert others["torch"][1]()["seen"].item() == 10
    assert len(others["diffusers"][1]()) == 1
    assert 8 < others["ema-pytorch"][1]()["seen"].item() < 10
    assert ours.state_dict_of(0.1)["seen"].item() == 10
