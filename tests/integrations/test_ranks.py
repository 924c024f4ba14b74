"""The callbacks in two processes give the files of one."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loops import build, check_snapshots, plain_loop
from ranks import NUM
from torch import nn

from edm2lite.ema import list_snapshots
from edm2lite.tensorfile import load_tensors


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(port)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, divisor, nimgs in (
        ("lightning", lambda size: 2, [40, 48]),
        ("lightning_shards", lambda size: 2, [24, 40, 48]),  # 24: where it was interrupted
        ("transformers", lambda size: size, [40, 48]),
    ):
        walk = plain_loop(  # 2 batches of 4 at once are one of 8
            2,
            lambda rows: len(rows[0]),
            divisor,
            net=build(nn.Softplus),
            num=NUM,
            batch=8,
            accumulate=2,
        )
        assert [n for n, _ in walk] == [16, 24, 40, 48]
        check_snapshots(tmp_path / name, walk, nimgs, prefix="net.")
        assert len({info.run for info in list_snapshots(tmp_path / name)}) == 1
    callbacks = torch.load(tmp_path / "lightning" / "last.ckpt", weights_only=True)["callbacks"]
    assert callbacks["EMACallback"]["nimg"] == 48
    assert (tmp_path / "transformers" / "checkpoint-4" / "ema_state.safetensors").is_file()
    sharded, whole = (list_snapshots(tmp_path / "shards" / n) for n in ("snapshots", "whole"))
    assert [info.nimg for info in sharded] == [30, 30, 50, 50]
    for sharded_info, whole_info in zip(sharded[2:], whole, strict=True):
        stored, expected = load_tensors(sharded_info.path)[0], load_tensors(whole_info.path)[0]
        assert all(stored[name].equal(value) for name, value in expected.items())
