"""Sweeps that are killed after every line of their ledger, and images by other threads; by hand.

    OMP_NUM_THREADS=1 python tests/slow/sweep_kills.py --lengths 8 --num 256 --steps 4

A sweep of the command is sent SIGKILL as soon as its ledger has one more line than at its start,
again and again, until it ends. Its table and report must then be those of an undisturbed sweep,
byte for byte. The same with three lengths, killed after a random time. Then the images of one model
are made with 1, 2 and 4 threads and in batches of 1, 7 and 64: they must be equal. Prints one line
per series; the exit code is 1 if anything was not as it must be.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_run import tiny_config

from edm2lite.metrics import statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.sampling import Sampling
from edm2lite.sampling.generation import generate
from edm2lite.tools.sweep_ema import main
from edm2lite.training.trainer import Trainer

LENGTHS = ("0.03", "0.05", "0.07", "0.10", "0.13", "0.16", "0.20", "0.25")


def start(words, log):
    """A sweep in a forked process, which need not import torch again."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        main([str(word) for word in words], standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def lines(out):
    path = out / "sweep.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed(words, out, log, wait):
    """Run to the end with kills: when ``wait(begin, lines at the start)`` says so."""
    kills = 0
    while True:
        there, begin = lines(out), time.monotonic()
        pid = start([*words, "--out", out], log)
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-2000:]
                return kills
            if wait(begin, there):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                break
            time.sleep(0.002)


def tables(out):
    return {name: (out / name).read_bytes() for name in ("sweep.csv", "sweep.md")}


def sweeps(run, reference, work, args):
    """Series of killed sweeps, each with whether its tables are those of an undisturbed one."""
    rng, log = random.Random(0), work / "log"
    for count in (args.lengths, 3):
        words = [run, "--sigma-rel", ",".join(LENGTHS[:count]), "--ref", reference]
        words += ["--weights", work / "classifier.safetensors"]
        words += ["--num", args.num, "--steps", args.steps]
        killed(words, work / f"whole{count}", log, lambda begin, there: False)
        whole = tables(work / f"whole{count}")
        out = work / f"lines{count}"
        kills = killed(words, out, log, lambda begin, there, out=out: lines(out) > there)
        yield f"{count} lengths, {kills} kills after every line", tables(out) == whole
        for i in range(args.random if count == 3 else 0):
            out = work / f"random{i}"
            kills = killed(words, out, log, at_random_times(rng, most=3))
            yield f"{count} lengths, {kills} kills at random times", tables(out) == whole


def at_random_times(rng, most):
    """Says when to kill: each time after up to four seconds, at most so often."""
    ends = [rng.uniform(0.1, 4) for _ in range(most)]

    def wait(begin, there):
        if ends and time.monotonic() - begin > ends[-1]:
            ends.pop()
            return True
        return False

    return wait


def images(run):
    """Whether images depend on threads and batches."""
    made = {}
    for threads, batch in ((1, 64), (1, 1), (2, 7), (4, 64)):
        torch.set_num_threads(threads)
        made[threads, batch] = generate(
            f"{run}@sigma_rel=0.1", range(100), classes="all", sampling=Sampling(num_steps=4),
            batch_size=batch,
        )  # fmt: skip
    torch.set_num_threads(1)
    first = next(iter(made.values()))
    return f"images of {len(made)} settings", all(np.array_equal(first, m) for m in made.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, default=8)
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--random", type=int, default=5)
    with tempfile.TemporaryDirectory() as folder:
        work, args, good = Path(folder), parser.parse_args(), True
        Trainer(tiny_config(), work / "run", torch.device("cpu")).train()
        weights, reference = work / "classifier.safetensors", work / "reference.safetensors"
        train_classifier(weights, num_epochs=1)
        statistics("digits", "digits", weights=weights).save(reference)
        for what, equal in (*sweeps(work / "run", reference, work, args), images(work / "run")):
            print(f"{what}: {'equal' if equal else 'NOT EQUAL'}", flush=True)
            good = good and equal
    sys.exit(0 if good else 1)
