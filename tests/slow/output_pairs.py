"""Two of every command on one output, started together, and one of them killed: nothing is lost.

    python tests/slow/output_pairs.py [PAIRS [SEED]]

starts PAIRS (20) pairs of each command with random offsets. In every second pair one of the two is
killed at a random moment, mostly the one that writes: the other one has ended. Commands run in
forked processes, so that torch is imported once. Of each pair it asserts that

- a process ends with exit code 0, is killed, or is refused in one line;
- one whose exit code is 0 finds its result complete, and to the byte that of a lone process;
- without a kill, one of the two completes it;
- the same command afterwards completes what a kill left, or finds it complete, and then no lock and
  no unfinished file is there.

With 20 pairs and seed 1 it printed (without the seconds, on a busy machine with two cores):

    generate to a ZIP: 11 done + refused; 9 killed + refused, taken over
    generate to a folder: 13 done + refused; 7 killed + refused, taken over
    import: 2 done + killed; 1 done + killed, taken over; 12 done + refused; 5 killed + refused,
        taken over
    convert to a ZIP: 8 done + killed; 1 done + killed, taken over; 11 done + refused
    convert to a folder: 6 done + killed; 13 done + refused; 1 killed + refused, taken over
    encode: 3 done + killed; 12 done + refused; 5 killed + refused, taken over
    sweep: 13 done + refused; 7 killed + refused, taken over
    reconstruct: 1 done + done; 5 done + killed; 11 done + refused; 3 killed + refused, taken over
    evaluate stats: 12 done + refused; 8 killed + refused, taken over
    0 of 180 pairs failed
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

import edm2lite.dataset
import edm2lite.interop.ema_pytorch
import edm2lite.models.autoencoder
import edm2lite.sampling.generation  # imported here, once for all processes
import edm2lite.sweep  # noqa: F401
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.unet import UNetConfig
from edm2lite.tools.edm2lite import main
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema

PROGRAMS = {"edm2lite": main, "reconstruct_ema": reconstruct_ema, "sweep_ema": sweep_ema}
CASES = {  # the output follows
    "generate to a ZIP": "edm2lite generate net.safetensors --seeds 0-31 --steps 4 --out out.zip",
    "generate to a folder": "edm2lite generate net.safetensors --seeds 0-31 --steps 4 --out out",
    "import": "edm2lite import theirs --sigma-rel 0.1 --update-every 1 --out out",
    "convert to a ZIP": "edm2lite dataset convert photos out.zip --resolution 16 --threads 1",
    "convert to a folder": "edm2lite dataset convert photos out --resolution 16 --threads 1",
    "encode": "edm2lite dataset encode photos out --vae vae --shard 8 --threads 1",
    "sweep": "sweep_ema run --sigma-rel 0.08,0.1,0.12 --metric loss --data digits --num 600"
    " --max-error 1 --out out",
    "reconstruct": "reconstruct_ema large --sigma-rel 0.06:0.12:0.01 --max-error 1 --out out",
    "evaluate stats": "edm2lite evaluate stats digits --extractor digits --weights c --out out.zip",
}
REFUSALS = ("must be written by one process at a time", "exists; remove it", "to a new folder, ")


def start(command, log, folder):
    """Fork a process that runs a command in ``folder``; its output goes to the file ``log``."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(folder)
        name, *words = command.split()
        sys.argv = [name]
        with open(log, "w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            try:
                PROGRAMS[name](words)
            except SystemExit as end:
                code = end.code or 0
    finally:
        os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lives(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def alone(command, folder):
    """Run a command; its exit code, and what it says."""
    return ended(start(command, folder / "log", folder)), (folder / "log").read_text()


def contents(folder):
    """Everything that ``out`` or ``out.zip`` consists of, hidden files and what lies beside."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] not in MATERIAL
    }


MATERIAL = {
    "net.safetensors",
    "run",
    "large",
    "theirs",
    "photos",
    "vae",
    "c",
    "log",
    "log0",
    "log1",
}


def prepare(folder):
    """A network, a run, images, an autoencoder and so on, all of them tiny."""
    torch.manual_seed(0)
    unet = UNetConfig(
        img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=8,
    )  # fmt: skip
    net = Precond(PrecondConfig(backbone=unet))
    net.save(folder / "net.safetensors", {"encoder": '{"kind": "pixels"}'})
    ema = PowerFunctionEMA(net, sigma_rels=[0.05, 0.1])
    for step in range(1, 9):
        for value in net.parameters():
            value.data.add_(0.01 * torch.randn_like(value))
        ema.update(nimg=64 * step)
        ema.save_snapshots(folder / "run/snapshots", extra={"model": net.config.to_json()})
    weights = {"w": torch.randn(2**22)}  # so large that writing takes longer than planning
    ema = PowerFunctionEMA(weights, sigma_rels=[0.05, 0.1])
    for step in range(1, 7):
        weights["w"] += 0.01 * torch.randn(2**22)
        ema.update(nimg=64 * step)
        ema.save_snapshots(folder / "large/snapshots")
    (folder / "theirs").mkdir()
    for step in range(10, 210, 10):
        state = {"initted": torch.tensor(True), "step": torch.tensor(step)}
        weights = {f"ema_model.{i}": torch.randn(5000) for i in range(8)}
        torch.save({**state, **weights}, folder / f"theirs/0.{step}.pt")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{i:02d}.png")
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), sample_size=16, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")  # fmt: skip


def clear(folder):
    """Remove every output."""
    for path in [*folder.glob("out*"), *folder.glob(".*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_alone(command, log, code, expected, folder):
    """One process has ended: its code and its words are those of one of three ends."""
    text = log.read_text()
    if code == 0:
        assert contents(folder) == expected, (command, "exit code 0, and not complete", text)
    elif code != -signal.SIGKILL:
        last = text.splitlines()[-1:]
        assert code == 1 and last and any(r in last[0] for r in REFUSALS), (command, code, text)
        assert len(text.splitlines()) == 1, (command, "one line", text)


def one_pair(command, folder, expected, seconds, is_killing, rng):
    """Start two, kill one perhaps, start again; the two exit codes, in words."""
    logs = [folder / "log0", folder / "log1"]
    first = start(command, logs[0], folder)
    time.sleep(rng.choice((0, 0, rng.uniform(0, 0.3 * seconds))))
    pids = [first, start(command, logs[1], folder)]
    if is_killing:
        time.sleep(rng.uniform(0, 0.8 * seconds))
        living = [pid for pid in pids if lives(pid)]
        if living:
            os.kill(rng.choice(living), signal.SIGKILL)
    codes = [ended(pid) for pid in pids]
    if not is_killing:
        assert 0 in codes, (command, codes, [log.read_text() for log in logs])
    for log, code in zip(logs, codes, strict=True):
        check_alone(command, log, code, expected, folder)
    again, text = alone(command, folder)
    assert again == 0 or REFUSALS[1] in text or REFUSALS[2] in text, (command, codes, again, text)
    assert contents(folder) == expected, (command, codes, "again", sorted(contents(folder)))
    words = {0: "done", 1: "refused", -signal.SIGKILL: "killed"}
    taken = any("ended while it wrote there" in log.read_text() for log in (*logs, folder / "log"))
    return " + ".join(sorted(words[code] for code in codes)) + (", taken over" if taken else "")


def series(num_pairs=20, seed=0):
    torch.set_num_threads(1)
    rng, failures = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        material = Path(name) / "material"
        material.mkdir()
        pid = os.fork()  # this process stays one without threads
        if not pid:
            prepare(material)
            os._exit(0)
        assert ended(pid) == 0
        code, text = alone("edm2lite classifier --out c", material)
        assert code == 0, text
        for case, command in CASES.items():
            for _ in range(2):  # the second time as fast as it gets
                clear(material)
                began = time.monotonic()
                code, text = alone(command, material)
                seconds = time.monotonic() - began
                assert code == 0, (command, text)
            expected = contents(material)
            ends = Counter()
            for i in range(num_pairs):
                clear(material)
                try:
                    ends[one_pair(command, material, expected, seconds, i % 2, rng)] += 1
                except AssertionError as error:
                    failures += 1
                    print(f"FAILED {case}: {error}", flush=True)
            told = "; ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            print(f"{case} ({seconds:.2f} s alone): {told}", flush=True)
    print(f"{failures} of {num_pairs * len(CASES)} pairs failed")
    return failures


if __name__ == "__main__":
    sys.exit(bool(series(*map(int, sys.argv[1:]))))
