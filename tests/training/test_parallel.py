"""Processes, accumulation and sharding change the speed of a run, not its course."""

from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from text.text_configs import text_config
from tiny_run import tiny_config
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from training_runs import arguments, losses, run_jobs, stats

from edm2lite.ema import list_snapshots
from edm2lite.tensorfile import load_tensors
from edm2lite.training import distributed
from edm2lite.training.parallel import check_fsdp
from edm2lite.training.trainer import Trainer

STEPS20 = "total_nimg=640"


def averages(folder, nimg=640):
    """The averages at an image count, tensor by tensor."""
    found = [info for info in list_snapshots(folder) if info.nimg == nimg]
    return {
        (info.sigma_rel, name): value
        for info in found
        for name, value in load_tensors(info.path)[0].items()
    }


def assert_same_course(folder, run_dir):
    """20 steps of Adam on sums taken in other orders: about 1e-5 of a tensor, measured."""
    np.testing.assert_allclose(losses(folder), losses(run_dir)[: len(losses(folder))], rtol=1e-5)
    expected = averages(run_dir)
    found = averages(folder)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        distance = (found[key] - value).norm() / value.norm().clamp_min(1e-9)
        assert distance < 1e-4, (key, distance)


@pytest.mark.slow
def test_two_and_four_processes_accumulating_or_sharded_follow_one_process(run_dir, tmp_path):
    jobs = {
        "two": (2, []),
        "four": (4, ["microbatch=4"]),
        "sharded": (2, ["parallel=fsdp", "microbatch=8"]),
    }
    codes, text = run_jobs(
        *(
            {"args": arguments(tmp_path / name, STEPS20, *more), "ranks": ranks}
            for name, (ranks, more) in jobs.items()
        )
    )
    assert codes == [[0] * ranks for ranks, _ in jobs.values()], text
    for name in jobs:
        assert_same_course(tmp_path / name, run_dir)
        norms = [line["grad_norm"] for line in stats(tmp_path / name)]
        np.testing.assert_allclose(norms, [s["grad_norm"] for s in stats(run_dir)[:2]], rtol=1e-5)
    for name, value in load_tensors(tmp_path / "two" / "last.safetensors")[0].items():
        other = load_tensors(tmp_path / "sharded" / "last.safetensors")[0][name]
        torch.testing.assert_close(other, value, rtol=0, atol=1e-4 * float(value.abs().max() + 1))


@pytest.mark.slow
def test_a_run_continues_with_other_processes_after_a_signal_to_one_of_them(run_dir, tmp_path):
    folder = tmp_path / "a"
    codes, text = run_jobs(
        {"args": arguments(folder, STEPS20), "ranks": 2, "terminate_at": 160},
        {"args": arguments(folder, "total_nimg=480", "parallel=fsdp", "sample_nimg=480",
                           "sample_count=3", "sample_steps=2"), "ranks": 2},
        {"args": arguments(folder, STEPS20)},
    )  # fmt: skip
    assert codes == [[0, 0], [0, 0], [0]], text
    assert "stopped for SIGTERM at nimg = 224 of 640" in text  # asked at 192, answered a step later
    assert len(list((folder / "samples").glob("0000000480-*.png"))) == 2
    merged = [line for line in stats(folder) if line["nimg"] in (320, 640)]
    assert merged[0]["loss"] == pytest.approx(losses(run_dir)[0], rel=1e-5)
    expected, found = averages(run_dir), averages(folder)
    for key, value in expected.items():
        assert (found[key] - value).norm() <= 1e-4 * value.norm() + 1e-9, key


@pytest.mark.slow
def test_two_processes_that_average_gradients_of_copies_follow_one(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # as compiled, but for the compiler itself
    changes = (STEPS20, "compile=true", "microbatch=8")
    codes, text = run_jobs({"args": arguments(tmp_path / "a", *changes), "ranks": 2})
    assert codes == [[0, 0]], text
    assert_same_course(tmp_path / "a", run_dir)


@pytest.mark.slow
def test_two_processes_follow_one_that_is_told_words(text_run, table, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the data set is
    (tmp_path / "text.yaml").write_text(text_config(table, "total_nimg=320").to_yaml())
    run = tmp_path / "run"
    codes, said = run_jobs({"args": [str(tmp_path / "text.yaml"), "--out", str(run)], "ranks": 2})
    assert codes == [[0, 0]], said
    expected, found = averages(text_run, 320), averages(run, 320)
    for key, value in expected.items():
        assert (found[key] - value).norm() <= 1e-4 * value.norm() + 1e-9, key


def test_gradients_of_an_accumulated_batch_are_exchanged_once(tmp_path, monkeypatch):
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    exchanged = []

    def count(state, bucket):
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    with distributed.process_group() as device:
        trainer = Trainer(tiny_config("microbatch=8"), tmp_path / "a", device)
        trainer.loss.module.register_comm_hook(None, count)
        trainer.train_step()
        trainer.close()
    assert sum(exchanged) == sum(p.numel() for p in trainer.net.parameters())


@pytest.mark.parametrize("scale", [64.0, 0.5])
def test_loss_scale_changes_nothing_in_float32(scale, run_dir, tmp_path):
    config = tiny_config("total_nimg=320", f"optim.loss_scale={scale}")
    Trainer(config, tmp_path / "a", torch.device("cpu")).train()
    assert losses(tmp_path / "a") == losses(run_dir)[:1]  # powers of two: exact


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_close_to_float32(dtype, compiled, run_dir, tmp_path):
    config = tiny_config("total_nimg=320", f"net.dtype={dtype}", f"compile={str(compiled).lower()}")
    trainer = Trainer(config, tmp_path / "a", torch.device("cpu"))
    with torch.compiler.set_stance("force_eager"):  # weights once per step, without a compiler
        trainer.train()
    assert {p.dtype for p in trainer.net.parameters()} == {torch.float32}
    # bfloat16 rounds activations to 2**-9; ten steps at full rate spread that to some per cent
    assert losses(tmp_path / "a")[0] == pytest.approx(losses(run_dir)[0], rel=0.05)
    assert losses(tmp_path / "a") != losses(run_dir)[:1]
    assert stats(tmp_path / "a")[0]["nonfinite_steps"] == 0


def arithmetic():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark),
        (matmul.allow_fp16_reduced_precision_reduction, torch.get_num_threads()),
    )


@pytest.mark.parametrize("is_tf32", [False, True])
def test_arithmetic_of_the_program_is_changed_while_a_run_goes_on(is_tf32, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "_loop", lambda self, stop: seen.append(arithmetic()))
    matmul = torch.backends.cuda.matmul
    usual, matmul.allow_tf32 = matmul.allow_tf32, is_tf32
    try:
        before = arithmetic()
        Trainer(tiny_config("threads=2"), tmp_path / "a", torch.device("cpu")).train()
        assert seen == [((False, False, torch.cuda.is_available()), (False, 2))]
        assert arithmetic() == before
    finally:
        matmul.allow_tf32 = usual


def test_a_compiled_network_follows_the_same_course_under_the_same_names(
    run_dir, tmp_path, monkeypatch
):
    # the default backend takes minutes to build; what is traced does not depend on it
    compiled = partialmethod(torch.nn.Module.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    torch._dynamo.reset()
    config = tiny_config("total_nimg=320", "compile=true")
    trainer = Trainer(config, tmp_path / "a", torch.device("cpu"))
    trainer.train()
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert losses(tmp_path / "a")[0] == pytest.approx(losses(run_dir)[0], rel=1e-6)
    assert averages(tmp_path / "a", 320).keys() == averages(run_dir, 320).keys()


def test_sharding_by_a_torch_that_loses_gradients_is_refused():
    for version in ("2.6.0+cu124", "2.8.0"):
        with pytest.raises(ValueError, match="needs torch 2.9 or newer.*use parallel=ddp"):
            check_fsdp(version)
    for version in ("2.9.1+cu128", "2.10.0a0+git1234", "3.0.0"):
        check_fsdp(version)
