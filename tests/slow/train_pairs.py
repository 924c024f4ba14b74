"""Two trainings in one folder, started together and killed at random; run by hand.

    OMP_NUM_THREADS=1 python tests/slow/train_pairs.py --together 20 --killed 20 --torchrun 2

Every run must end with the files of an undisturbed one, bit for bit. Between a kill and the next
start every file under its final name must be whole. Prints one line per pair and a summary; the
exit code is 1 if anything was not as it must be.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from edm2lite.dataset import open_dataset
from edm2lite.ema import list_snapshots
from edm2lite.ema.doctor import examine
from edm2lite.tensorfile import read_header
from edm2lite.training import manifest, trainer  # noqa: F401 (so that children need not import it)
from edm2lite.training.__main__ import main

SETS = (
    "total_nimg=1280", "batch_size=64", "snapshot_nimg=64", "checkpoint_nimg=128", "status_nimg=64",
    "net.backbone.attn_resolutions=[]", "net.backbone.model_channels=16",
    "net.backbone.head_channels=16",
)  # fmt: skip


def arguments(folder):
    return ["digits", "--out", str(folder), *(part for s in SETS for part in ("--set", s))]


def start(folder, log):
    """A training in a forked process, which need not import torch again."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        main(arguments(folder), standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder):
    """What must be equal: names, values and losses."""
    digests = {info.path.name: info.header.digest for info in list_snapshots(folder)}
    digests["last"] = read_header(folder / "last.safetensors").digest
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        del line["sec_per_kimg"], line["img_per_sec"], line["mem_gib"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {"digests": digests, "lines": lines, "names": names}


def differences(found, expected):
    problems = [f"{key} differ" for key in ("lines", "names") if found[key] != expected[key]]
    wrong = [n for n, d in expected["digests"].items() if found["digests"].get(n, d) != d]
    missing = expected["digests"].keys() - found["digests"].keys()
    return (
        problems
        + [f"other values: {wrong}"] * bool(wrong)
        + [f"missing: {missing}"] * bool(missing)
    )


def torn(folder):
    """Files under their final names that are not whole."""
    problems = []
    if (folder / "snapshots").is_dir():
        for finding in examine(folder, [0.08]).findings:
            if finding.path is not None:
                problems.append(finding.message)
    for path in manifest.finished(folder / "checkpoints"):
        try:
            files = manifest.read(path)
            manifest.check(path, files, files)
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return problems


def refusals(logs):
    return sum(log.read_text().count("must be written by one process at a time") for log in logs)


def bad_logs(logs):
    return [log.read_text() for log in logs if "Traceback" in log.read_text()]


def pair(work, draw, kills):
    """(exit codes, problems before the last start, number of refusals, tracebacks)"""
    folder, logs = work / "run", [work / "0.log", work / "1.log", work / "2.log"]
    first = start(folder, logs[0])
    time.sleep(draw.choice((0, 0.02, draw.uniform(0, 0.5), draw.uniform(0, 2.5))))
    pids = [first, start(folder, logs[1])]
    problems = []
    if kills:
        time.sleep(draw.uniform(0.1, 3.5))
        for pid in draw.sample(pids, kills):
            os.kill(pid, signal.SIGKILL)
    codes = [end(pid) for pid in pids]
    if kills and folder.exists():
        problems = torn(folder)
    if 0 not in codes:
        codes.append(end(start(folder, logs[2])))
    logs = [log for log in logs if log.exists()]
    return codes, problems, refusals(logs), bad_logs(logs)


def torchrun(work, draw):
    """The same for a torchrun of two processes that is killed, and one that takes over."""
    folder, logs = work / "run", [work / f"{i}.log" for i in range(9)]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "edm2lite.training", *arguments(folder)),
    ]
    with open(logs[0], "w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log)
    while not (folder / "stats.jsonl").exists():
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 1))
    agent.kill()
    codes = [agent.wait()]
    began = time.monotonic()
    for path in logs[1:]:  # refused as long as the processes of the first one live
        with open(path, "w") as log:
            codes.append(subprocess.call(command, stdout=log, stderr=log))
        if codes[-1] == 0:
            break
    logs = [log for log in logs if log.exists()]
    print(f"torchrun killed: taken over after {time.monotonic() - began:.0f} s", flush=True)
    return codes, torn(folder), refusals(logs), bad_logs(logs)


def series(name, count, run, reference, draw):
    found = collections.Counter()
    for i in range(count):
        work = Path(tempfile.mkdtemp(prefix="pair"))
        codes, problems, refused, tracebacks = run(work, draw)
        problems += differences(content(work / "run"), reference)
        problems += ["a traceback"] * bool(tracebacks)
        print(f"{name} {i}: codes {codes}, {refused} refused, {problems or 'equal'}", flush=True)
        found.update(pairs=1, refused=int(refused > 0), wrong=int(bool(problems)))
        if problems:
            print(*tracebacks, f"kept: {work}", sep="\n", flush=True)
        else:
            shutil.rmtree(work)
    print(
        f"{name}: {found['pairs']} pairs, {found['refused']} with a refusal, {found['wrong']} wrong"
    )
    return found["wrong"]


def lone(run):
    work = Path(tempfile.mkdtemp(prefix="lone"))
    run(work / "run", work / "log")
    return content(work / "run")


def main_of_series():
    parser = argparse.ArgumentParser()
    for name in ("together", "killed", "torchrun", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    open_dataset("digits")
    draw = random.Random(given.seed)
    reference = lone(lambda folder, log: end(start(folder, log)))
    wrong = series("together", given.together, lambda w, d: pair(w, d, 0), reference, draw)
    killed = given.killed
    wrong += series("one killed", killed - killed // 2, lambda w, d: pair(w, d, 1), reference, draw)
    wrong += series("both killed", killed // 2, lambda w, d: pair(w, d, 2), reference, draw)
    if given.torchrun:
        two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        reference = lone(
            lambda folder, log: subprocess.check_call(
                [sys.executable, *two, "-m", "edm2lite.training", *arguments(folder)],
                stderr=subprocess.DEVNULL,
            )
        )
        wrong += series("torchrun", given.torchrun, torchrun, reference, draw)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main_of_series()
