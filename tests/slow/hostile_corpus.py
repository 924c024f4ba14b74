"""Hostile files, each given to each command in a process of its own: time, memory, and what ran.

    python tests/slow/hostile_corpus.py [KIND ...]

Prints what went wrong and, per kind of file, the longest time and the most memory. It fails if a
file was executed, or a command ended in a traceback, took longer than 10 s above an empty one, or
more than 1 GiB.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_files import COMMANDS, corpus, weights_file, words

SECONDS, BYTES, ADDRESSES = 10, 2**30, 2**36  # torch for GPUs maps 10 GiB before it does anything
MODULES = {
    "edm2lite": "edm2lite.tools.edm2lite", "reconstruct_ema": "edm2lite.tools.reconstruct_ema",
    "sweep_ema": "edm2lite.tools.sweep_ema", "training": "edm2lite.training",
}  # fmt: skip


def measured(arguments, folder):
    """Exit code, seconds, bytes and last line of a process."""
    limits = (resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    begin = time.perf_counter()
    with open(folder / "output", "w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder / "statistics", stdout=output,
            stderr=output, preexec_fn=lambda: resource.setrlimit(*limits),
        )  # fmt: skip
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            time.sleep(0.02)
            if time.perf_counter() - begin > 90:
                process.kill()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    _, status, usage = found
    code = os.waitstatus_to_exitcode(status)
    return code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text


def main(kinds):
    failures = runs = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, weights = list(corpus(folder)), weights_file(folder)
        empty = measured(["edm2lite.tools.edm2lite", "generate", "/none", "--seeds", "0"], folder)
        print(f"a file that is not there: {empty[1]:.1f} s of CPU, {empty[2] / 2**20:.0f} MiB")
        for kind in kinds or COMMANDS:
            longest, most = (0.0, ""), (0, "")
            paths = [path for k, path in files if k == kind]
            for i, path in enumerate(paths):
                for command in COMMANDS[kind]:
                    program, arguments = words(command, path, folder / f"out-{i}", weights)
                    code, seconds, size, text = measured([MODULES[program], *arguments], folder)
                    what, runs = f"{path.name}: {command.split(' {')[0]}", runs + 1
                    longest, most = max(longest, (seconds, what)), max(most, (size, what))
                    ran = (folder / "executed").exists() or not weights.is_file()
                    bad = code not in (0, 1) or "Traceback" in text or ran
                    if bad or seconds > SECONDS + empty[1] or size > BYTES:
                        failures += 1
                        print(f"FAILED {what}: {code}, {seconds:.1f} s, {size / 2**20:.0f} MiB")
                        print(f"   {text.strip()[-300:]}", flush=True)
            print(
                f"{kind}: {len(paths)} files, {longest[0]:.1f} s ({longest[1]}),"
                f" {most[0] / 2**20:.0f} MiB ({most[1]})", flush=True,
            )  # fmt: skip
    print(f"{runs} runs, {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
