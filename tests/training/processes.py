"""Run by tests: training commands in forked processes, so that torch is imported only once.

``processes.py JSON``, a list of jobs ``{"args": [...], "ranks": n}``, run one after the other.
``ranks`` > 1 joins them as torchrun would. Further keys make trouble: ``kill_at`` k sends SIGKILL
at the k-th file operation in the folder of the run, ``limit`` is the largest size of a file in
bytes, ``terminate_at`` sends SIGTERM to the last rank at that image count, and ``interrupt_at``
SIGINT to every rank, ``times`` times within that step. ``interrupt_in`` is the name of a function,
``module:name``, within whose first call there is a SIGINT. Prints the exit codes of every job, in
JSON.
"""

import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback

import torch

from edm2lite.dataset import open_dataset
from edm2lite.training.__main__ import main

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")  # of sys.audit


def kill_at(count: int, folder: str) -> None:
    left = count

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if event in EVENTS and folder in str(args[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def signal_at(nimg: int, number: int, times: int = 1) -> None:
    trainer = importlib.import_module("edm2lite.training.trainer").Trainer
    step = trainer.train_step

    def train_step(self):
        for _ in range(times if self.nimg == nimg else 0):
            os.kill(os.getpid(), number)
        return step(self)

    trainer.train_step = train_step


def interrupt_in(function: str) -> None:
    module, _, name = function.partition(":")
    owner, name = importlib.import_module(module), name.split(".")
    for part in name[:-1]:
        owner = getattr(owner, part)
    inner = getattr(owner, name[-1])

    def interrupted(*args, **kwargs):
        setattr(owner, name[-1], inner)
        os.kill(os.getpid(), signal.SIGINT)
        return inner(*args, **kwargs)

    setattr(owner, name[-1], interrupted)


def child(job: dict, rank: int, port: int) -> None:
    code = 1
    try:
        # the first call after a fork renews the pool of threads, and must not come from two threads
        torch.set_num_threads(torch.get_num_threads())
        if job["ranks"] > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"]),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        if "kill_at" in job:
            kill_at(job["kill_at"], job["args"][job["args"].index("--out") + 1])
        if "limit" in job:  # beyond it writing fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        if "terminate_at" in job and rank == job["ranks"] - 1:
            signal_at(job["terminate_at"], signal.SIGTERM)
        if "interrupt_at" in job:
            signal_at(job["interrupt_at"], signal.SIGINT, job.get("times", 1))
        if "interrupt_in" in job:
            interrupt_in(job["interrupt_in"])
        main(job["args"], standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread.name == "ema-writer":  # what the exit of an interpreter waits for
                thread.join(60)
        os._exit(code)


def run(job: dict) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            child(job, rank, port)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the caller may ignore it
    for module in ("edm2lite.training.trainer", "torch._dynamo"):  # as every process would
        importlib.import_module(module)
    open_dataset("digits")
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
