"""Hooks: when they are called, what they report, and that a run does not notice them."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from training_runs import digests, names, stats, user_module

from edm2lite.diffusion.precond import Precond
from edm2lite.tensorfile import load_tensors
from edm2lite.training import Hook, Trainer, load_config
from edm2lite.training.statistics import NAMES

CPU = torch.device("cpu")
TIMES = ("sec_per_kimg", "img_per_sec", "mem_gib")

WEIGHT_NORM = """
    from dataclasses import dataclass

    from edm2lite.training import Hook


    @dataclass(kw_only=True)
    class WeightNorm(Hook):
        factor: float = 1.0

        def run(self, trainer):
            squares = sum(p.square().sum() for p in trainer.net.parameters())
            trainer.report("weight_norm", self.factor * squares.sqrt())
"""


def train(folder, *changes, **more):
    Trainer(tiny_config(*changes), folder, CPU, **more).train()
    return folder


def without_times(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in stats(folder)]


def test_a_hook_of_the_users_reports_into_the_lines_of_the_run(run_dir, tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "weight_norm_a", WEIGHT_NORM)
    hook = "hooks=[{kind: 'weight_norm_a:WeightNorm', every: 192, factor: 2}]"
    folder = train(tmp_path / "run", hook)
    lines = stats(folder)
    assert [line["nimg"] for line in lines] == sorted({*range(192, 1281, 192), 320, 640, 960, 1280})
    assert [list(line) for line in lines if line["nimg"] == 192] == [["nimg", "weight_norm"]]
    assert "weight_norm" not in lines[1] and "loss" in lines[1]  # at 320: a status line alone
    both = lines[-1]  # the end of the run, where everything happens
    weights, _ = load_tensors(folder / "last.safetensors")
    parameters = [weights[name] for name, _ in Precond(tiny_config().net).named_parameters()]
    norm = math.sqrt(sum(np.square(p.numpy(), dtype=np.float64).sum() for p in parameters))
    assert both["loss"] and both["weight_norm"] == pytest.approx(2 * norm, rel=1e-6)
    # the run itself is what it is without the hook
    assert digests(folder) == digests(run_dir) and names(folder) == names(run_dir)
    own = [line for line in without_times(folder) if "loss" in line]
    for line in own:
        line.pop("weight_norm", None)
    assert own == without_times(run_dir)
    # and its configuration can be read again
    assert load_config(str(folder)).hooks[0].factor == 2


class Recorder(Hook):
    """Notes every call."""

    at_end = True

    def __init__(self, every, calls):
        super().__init__(every=every)
        self.calls = calls

    def check(self, config, dataset):
        self.calls.append(("check", config.batch_size, len(dataset)))

    def start(self, trainer):
        self.calls.append(("start", trainer.nimg))
        self.first = next(trainer.net.parameters()).detach().clone()

    def before_step(self, trainer):
        self.before = next(trainer.net.parameters()).detach().clone()
        self.calls.append(("before", trainer.nimg))

    def run(self, trainer):
        after = next(trainer.net.parameters())
        self.calls.append(
            ("run", trainer.nimg, trainer.ema.nimg, bool((after == self.before).all()))
        )

    def finish(self, trainer):
        self.calls.append(("finish", trainer.nimg))


def test_hooks_are_called_around_the_steps_that_are_due(tmp_path):
    calls = []
    train(tmp_path / "a", "total_nimg=320", hooks=[Recorder(128, calls), Recorder(0, [])])
    assert calls == [
        ("check", 32, 1797),
        ("start", 0),
        ("before", 96), ("run", 128, 128, False),
        ("before", 224), ("run", 256, 256, False),
        ("before", 288), ("run", 320, 320, False),  # the end of the run
        ("finish", 320),
    ]  # fmt: skip
    calls.clear()
    train(tmp_path / "a", "total_nimg=384", hooks=[Recorder(128, calls)])
    assert calls[1:] == [("start", 320), ("before", 352), ("run", 384, 384, False), ("finish", 384)]
    calls.clear()
    never = Recorder(0, calls)
    train(tmp_path / "b", "total_nimg=320", hooks=[never])
    assert [call[0] for call in calls] == ["check", "start", "finish"]
    never.at_end, never.every = False, 128
    assert [n for n in range(32, 321, 32) if never.is_due(n, 320)] == [128, 256]


def test_an_interrupted_run_reports_the_same_lines(tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "weight_norm_b", WEIGHT_NORM)
    hook = "hooks=[{kind: 'weight_norm_b:WeightNorm', every: 96}]"
    more = (hook, "magnitudes_nimg=224", "checkpoint_nimg=192")
    whole = train(tmp_path / "whole", *more, "total_nimg=960")
    trainer = Trainer(tiny_config(*more, "total_nimg=960"), tmp_path / "cut", CPU)
    step = trainer.train_step

    def interrupted():
        if trainer.nimg == 544:  # the last checkpoint is at 384; lines at 448 and 480 come again
            raise KeyboardInterrupt
        return step()

    trainer.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [line["nimg"] for line in stats(tmp_path / "cut")][-2:] == [384, 480]
    train(tmp_path / "cut", *more, "total_nimg=960")
    expected, found = without_times(whole), without_times(tmp_path / "cut")
    # the latest magnitudes are repeated in status lines; they are not part of a checkpoint
    assert any("activation" in line for line in expected)
    for line in (*expected, *found):
        line.pop("activation", None)
    assert found == expected


def test_names_of_the_trainer_are_not_free(tmp_path):
    trainer = Trainer(tiny_config("magnitudes_nimg=32", "total_nimg=320"), tmp_path / "a", CPU)
    with pytest.raises(ValueError, match="under a name of its own, loss is one of the trainer's"):
        trainer.report("loss", 1.0)
    trainer.train()
    assert set(stats(tmp_path / "a")[0]) == set(NAMES)


def test_reported_values_may_be_nested_and_of_any_number_type(tmp_path):
    class Everything(Hook):
        def run(self, trainer):
            trainer.report("a", {"x": torch.tensor(0.5), "y": {"z": np.float32(0.25)}})
            trainer.report("b", np.int64(3))
            trainer.report("c", 4)

    train(tmp_path / "a", "total_nimg=320", hooks=[Everything(every=320)])
    (line,) = stats(tmp_path / "a")
    assert (line["a"], line["b"], line["c"]) == ({"x": 0.5, "y": {"z": 0.25}}, 3, 4)
    json.dumps(line, allow_nan=False)


@pytest.mark.parametrize(
    "hooks, message",
    [
        ("[{every: 64}]", r"hooks.0.kind must be given, .* one of validation, or module:name"),
        ("[{kind: valid, every: 64}]", "hooks.0.kind must be one of validation, or module:name"),
        ("[{kind: 'weight_norm_c:WeightNorm', every: 100}]",
         "hooks.0.every must be a multiple of batch_size = 32, got 100; the nearest is 96"),
        ("[{kind: 'weight_norm_c:WeightNorm', every: -32}]", "hooks.0.every must be at least 0"),
        ("[{kind: 'weight_norm_c:WeightNorm', every: 64, facto: 2}]",
         "unknown key hooks.0.facto; the nearest known one is hooks.0.factor"),
        ("[{kind: 'weight_norm_c:WeightNorm', every: 64, factor: big}]",
         "hooks.0.factor must be a number.* got 'big'"),
        ("[{kind: 'weight_norm_c:WeightNorm'}]", "hooks.0.every must be given and is missing"),
        ("[{kind: 'weight_norm_c:Nothing', every: 64}]", "module weight_norm_c has no Nothing"),
        ("[{kind: 'no_such_module_c:A', every: 64}]", "there is no module no_such_module_c"),
        ("{kind: 'weight_norm_c:WeightNorm', every: 64}", "hooks must be a list"),
        ("[3]", "hooks.0 must hold keys and values, got 3"),
    ],
)  # fmt: skip
def test_mistakes_in_the_list_of_hooks_are_explained(hooks, message, tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "weight_norm_c", WEIGHT_NORM)
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(f"hooks={hooks}")
    assert "\n" not in str(caught.value)


def test_a_hook_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    class Refusing(Hook):
        def run(self, trainer): ...

        def check(self, config, dataset):
            raise ValueError(f"{dataset.name} will not do")

    with pytest.raises(ValueError, match="digits will not do"):
        Trainer(tiny_config(), tmp_path / "a", CPU, hooks=[Refusing(every=64)])
    with pytest.raises(ValueError, match=r"Refusing.every must be a multiple of batch_size = 32"):
        Trainer(tiny_config(), tmp_path / "a", CPU, hooks=[Refusing(every=50)])
    assert not (tmp_path / "a").exists()


def test_values_deep_in_a_list_can_be_set_on_the_command_line(tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "weight_norm_d", WEIGHT_NORM)
    hook = "hooks=[{kind: 'weight_norm_d:WeightNorm', every: 64}]"
    config = tiny_config(hook, "hooks.0.factor=3", "hooks.0.every=1Ki")
    assert (config.hooks[0].factor, config.hooks[0].every) == (3, 1024)
    for change, message in (
        ("hooks.1.factor=3", "hooks.1 is a single value"),
        ("hooks.0=3", "hooks is a list; set it as a whole"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_config(hook, change)
