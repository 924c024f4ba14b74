"""Which device a process takes, by the option, the number of GPUs and its rank."""

import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_config

from edm2lite import processes
from edm2lite.dataset import open_dataset
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training import distributed, step_time
from edm2lite.training.__main__ import main as train
from edm2lite.training.data import BatchSource
from edm2lite.training.hooks import _peak_memory_gib


@pytest.fixture
def machine(monkeypatch):
    """A function that lets this process believe in a number of GPUs, and be of a rank."""
    current = []

    def pretend(gpus, local_rank=0, name=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        processes.choose_device(name)
        return current

    yield pretend
    processes.choose_device(None)


@pytest.mark.parametrize(
    "gpus, local_rank, name, expected",
    [
        (0, 0, None, "cpu"),
        (8, 3, None, "cuda:3"),
        (1, 3, None, "cuda:0"),  # as Slurm shows each process the one that is its own
        (8, 3, "cpu", "cpu"),
        (8, 3, "cuda", "cuda:3"),
        (8, 0, "cuda:5", "cuda:5"),
    ],
)
def test_device_is_that_of_the_rank_or_the_chosen_one(machine, gpus, local_rank, name, expected):
    current = machine(gpus, local_rank, name)
    assert processes.device() == torch.device(expected)
    assert current == ([] if expected == "cpu" else [torch.device(expected)])


@pytest.mark.parametrize("gpus, name", [(0, "cuda"), (2, "cuda:2")])
def test_devices_that_do_not_exist_are_refused(machine, gpus, name):
    machine(gpus, 0, name)
    with pytest.raises(ValueError, match=f"device {name} must exist, found {gpus} CUDA devices"):
        processes.device()


def test_more_processes_than_gpus_are_refused_before_they_meet(machine, monkeypatch):
    machine(2)
    for name, value in {"RANK": 0, "LOCAL_WORLD_SIZE": 4, "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, "watch_launcher", lambda: None)
    with (
        pytest.raises(ValueError, match="a GPU of its own, 4 processes found 2"),
        distributed.process_group(),
    ):
        pass


def test_one_gpu_is_for_one_process(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    machine(2, 1, "cuda")
    with pytest.raises(ValueError, match="--device cuda:1 must be for a single process"):
        machine(2, 1, "cuda:1")


def test_a_run_on_the_cpu_asks_nothing_of_a_gpu_of_the_machine(machine, monkeypatch):
    def refuse(*_):
        raise AssertionError("a GPU was asked")

    machine(1, name="cpu")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", refuse)
    assert 0 < _peak_memory_gib(torch.device("cpu")) < 64
    source = BatchSource(open_dataset("digits"), seed=0, batch_size=8, microbatch=8)
    (batch,) = source.batch(0)  # pinned memory needs a GPU
    source.close()
    assert not batch.images.is_pinned()


def test_the_peak_of_a_run_is_not_that_of_the_steps_timed_before_it(monkeypatch):
    reset = []
    monkeypatch.setattr(step_time, "images_per_second", lambda config, device: 100.0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    for name in ("cpu", "cuda"):
        step_time.fastest(tiny_config("threads=1"), torch.device(name), ["threads", "net.dtype"])
    assert reset == [torch.device("cuda")]


@pytest.mark.parametrize("command", [(train, "digits"), (edm2lite, "generate", "x")])
def test_commands_refuse_other_words_for_a_device(command, tmp_path):
    main, *arguments = command
    arguments += ["--out", str(tmp_path / "out"), "--device", "gpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0 and "a device must be cpu, cuda or cuda:N, got 'gpu'" in (
        " ".join(result.output.split())
    )


def test_training_on_a_device_that_is_missing_writes_nothing(machine, tmp_path):
    machine(0)
    result = CliRunner().invoke(
        train, ["digits", "--out", str(tmp_path / "out"), "--device", "cuda"]
    )
    assert result.exit_code == 1 and "device cuda must exist, found 0" in result.output
    assert not list(tmp_path.iterdir())
