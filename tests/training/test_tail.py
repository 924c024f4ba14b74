"""What follows the backward passes: few kernels, none that the host waits for, the same numbers."""

import math
from types import SimpleNamespace

import torch
from launches import Launches
from tiny_run import tiny_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.kernels.unit_rows import unit_rows_, unit_rows_together_
from edm2lite.network.layers import normalize_weights_
from edm2lite.training.config import load_config
from edm2lite.training.optimizer import _side_by_side, adam, zero_nonfinite_gradients
from edm2lite.training.parallel import ParallelLoss
from edm2lite.training.statistics import Statistics

BUDGET = 150  # 1160 when each tensor had its own


def fake_network(config, device):
    """The network of a configuration, of tensors without values."""
    with torch.device("meta"):
        net = Precond(config.net)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=device)))
    return net


def loss_of(net):
    loss = object.__new__(ParallelLoss)
    loss.net, loss.is_sharded = net, False
    return loss


def test_tail_of_xs_takes_few_kernels_and_waits_for_none():
    config = load_config("edm2-img512-xs", ["data.source=digits"])
    place = config.loss.location()
    noise = SimpleNamespace(location=lambda: place)
    device, parts = torch.device("cuda:0"), {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = fake_network(config, device)
        loss, optimizer = loss_of(net), adam(net, config.optim, device)
        statistics = Statistics(noise, device)
        with Launches():  # a new tracker asks whether the weights are finite
            ema = PowerFunctionEMA(net, config.ema.sigma_rels)
        samples = [torch.empty(64, device=device) for _ in range(3)]
        norms = []
        steps = {
            "gradients": lambda: norms.append(zero_nonfinite_gradients(loss, loss_scale=128)),
            "adam": lambda: optimizer.step_at(0.01),
            "averages": lambda: ema.update(2048 * len(norms)),
            "weights": lambda: normalize_weights_(net),
            "statistics": lambda: (
                statistics.add_losses(*samples, range(64)),
                statistics.add_step(0, norms[-1]),
            ),
        }
        for _ in range(2):  # the first step makes the state of Adam
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
            for name, run in steps.items():
                with Launches() as parts[name]:
                    run()
    counts = {name: launches.total for name, launches in parts.items()}
    assert sum(counts.values()) <= BUDGET, counts
    assert not any(launches.waits for launches in parts.values())
    assert counts["statistics"] == 0 and min(counts[name] for name in list(steps)[:4]) >= 8


def test_waits_are_noticed():
    with FakeTensorMode():
        value = torch.ones((), device="cuda:0")
        with Launches() as launches:
            bool(value), value.cpu()
    assert launches.waits == ["_local_scalar_dense", "_to_copy"]


def test_rows_taken_together_have_the_bits_of_each_alone():
    shapes = [(6, 4, 3, 3), (5, 36), (0, 4), (3, 36), (7, 4), (2, 9, 2, 2), (6, 4, 3, 3)]
    alone = [torch.randn(shape) * 10 ** (i - 3) for i, shape in enumerate(shapes)]
    alone[0][2] = 0
    together = [weight.clone() for weight in alone]
    unit_rows_(alone)
    unit_rows_together_(together)
    for a, b in zip(alone, together, strict=True):
        assert a.equal(b)
        rms = a.flatten(1).square().mean(1).sqrt()
        assert rms[rms > 0].sub(1).abs().le(1e-6).all()
    assert not together[0][2].any()


def test_gradients_side_by_side_are_zeroed_as_one_by_one():
    net = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Linear(5, 2)])
    net[0].weight.grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    net[1].weight.grad, net[1].bias.grad = torch.randn(2, 5), torch.randn(2)
    net[1].weight.grad[1, 2], net[0].weight.grad[0, 0, 1, 1] = math.nan, -math.inf
    trained = [parameter for parameter in net.parameters() if parameter.grad is not None]
    expected = [p.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for p in trained]
    (buffer,) = _side_by_side(trained, [p.grad for p in trained])
    torch.nan_to_num_(buffer, nan=0.0, posinf=0.0, neginf=0.0)
    assert all(p.grad.equal(e) for p, e in zip(trained, expected, strict=True))
    assert trained[0].grad.stride() == (27, 1, 9, 3)


def test_learning_rate_as_a_tensor_gives_the_steps_of_a_number():
    weights = [nn.Parameter(torch.ones(3, dtype=torch.float32)) for _ in range(2)]
    config = tiny_config().optim
    plain = adam(nn.ParameterList(weights[:1]), config, torch.device("cpu"))
    fused = adam(nn.ParameterList(weights[1:]), config, torch.device("cpu"))
    fused.param_groups[0]["fused"] = True
    for k in range(1, 6):
        for weight, optimizer in zip(weights, (plain, fused), strict=True):
            weight.grad = torch.tensor([1.0, -k, 0.0])
            optimizer.step_at(0.1 / k)
            assert optimizer.param_groups[0]["lr"] == 0.1 / k
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)
