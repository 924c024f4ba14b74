"""Thinning on file systems that are really full: ext4 on a loop device, and tmpfs; run by hand.

    sudo python tests/slow/thin_on_a_full_disk.py RUN

RUN is a run with snapshots, such as that of ``python -m edm2lite.training digits``. Needs the right
to mount. The exit code is 1 if thinning did not free what it said, or left a log that cannot be
read.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from edm2lite.ema import list_snapshots
from edm2lite.jsonlines import append_line

COMMAND = (sys.executable, "-m", "edm2lite.tools.snapshots")


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    print("$", *command, f"-> {done.returncode}", done.stdout[-300:], done.stderr, flush=True)
    return done


def fill(folder):
    """Take every byte that is left."""
    for block in (2**20, 1024, 1):
        with open(folder / f"fill{block}", "wb", buffering=0) as file:
            try:
                while file.write(b"x" * block):
                    pass
            except OSError:
                pass


def thinned(snapshots, mounted):
    """Whether thinning frees space when the disk is full, and leaves a folder without problems."""
    run("cp", "-r", snapshots, mounted / "snapshots")
    folder = mounted / "snapshots"
    log = folder / "thinned.jsonl"
    lines = [
        json.dumps({"nimg": 1, "gamma": info.gamma}) + "\n" for info in list_snapshots(folder)[:2]
    ]
    log.write_text(lines[0] + lines[1][:-2] + ', "file": "')
    with open(log, "a") as file:  # the next byte needs another block
        file.write("x" * (4096 - log.stat().st_size - 3) + '"}\n')
    before = len(list(folder.glob("*.safetensors")))
    fill(mounted)
    options = ("--thin", "--max-error", 0.05, "--range", "0.05:0.15", "--apply")
    try:
        append_line(log, {"nimg": 1, "gamma": 1.0})
        return print("the disk is not full")
    except OSError as error:
        print(error)
    done = run(*COMMAND, folder, *options)
    removed = before - len(list(folder.glob("*.safetensors")))
    after = run(*COMMAND, folder, "--range", "0.05:0.15")
    print(f"{removed} of {before} removed")
    said = f"{2 + removed} more were deleted by --thin"
    good = done.returncode == after.returncode == 0
    return good and removed > 0 and said in after.stdout


def main(snapshots):
    size = sum(path.stat().st_size for path in snapshots.glob("*")) // 2**20 + 24
    good = []
    with tempfile.TemporaryDirectory() as work:
        image, mounted = Path(work) / "image", Path(work) / "mounted"
        mounted.mkdir()
        run("truncate", "-s", f"{size}M", image)
        run("mkfs.ext4", "-q", "-m", "0", image)
        for mount in (["-o", "loop", image], ["-t", "tmpfs", "-o", f"size={size}m", "none"]):
            if run("mount", *mount, mounted).returncode:
                sys.exit("needs the right to mount")
            try:
                good.append(thinned(snapshots, mounted))
            finally:
                run("umount", mounted)
    print("ext4, tmpfs:", good)
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "snapshots")
