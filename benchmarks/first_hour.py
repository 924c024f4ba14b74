"""From a folder of pictures to a model: makes a folder of 700 emoji, and times three commands.

python benchmarks/first_hour.py --work runs/first-hour --pictures docs/images

The folder has four sub-folders of transparent PNGs, drawn by OpenMoji (CC BY-SA 4.0). The commands
are those of docs/tutorial.md, with no other options.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import click

from edm2lite.dataset import open_collection

GROUPS = {  # group of Unicode -> folder, number of pictures
    "Animals & Nature": ("Animals", 150),
    "Flags": ("Flags", 250),
    "Food & Drink": ("Food", 135),
    "Smileys & Emotion": ("Smileys", 165),
}
SIDE = 72


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/first-hour"))
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder of the documentation.")
@click.option("--only-photos", is_flag=True, help="Make the folder of pictures and stop.")
def main(work: Path, pictures: Path | None, only_photos: bool) -> None:
    """Time the commands of the tutorial."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "photos").exists():
        make_photos(work / "photos")
    if only_photos:
        return
    timed(work, "edm2lite train --data photos --out runs/photos")
    timed(work, "edm2lite sweep runs/photos")
    best = best_length(work / "runs" / "photos")
    model = f"runs/photos@sigma_rel={best}"
    timed(work, f"edm2lite sample {model} --class all --seeds 0-31 --guidance 2 --grid grid.png")
    if pictures is not None:
        run = work / "runs" / "photos"
        shutil.copy(work / "grid.png", pictures / "first-hour-grid.png")
        shutil.copy(run / "sweep.png", pictures / "first-hour-sweep.png")
        samples = sorted((run / "samples").glob("*-0.10000.png"))
        shutil.copy(samples[-1], pictures / "first-hour-samples.png")


def make_photos(folder: Path) -> None:
    """Write the PNGs, a folder per group."""
    emoji = open_collection("openmoji", resolution=SIDE)
    assert emoji.table is not None
    for group, (name, count) in GROUPS.items():
        label = emoji.table.classes.index(group)
        rows = [i for i, known in enumerate(emoji.table.values.tolist()) if known == label]
        (folder / name).mkdir(parents=True)
        for row in rows[:count]:
            emoji.load(row).save(folder / name / f"{Path(emoji.names[row]).stem}.png")


def timed(work: Path, command: str) -> None:
    """Run a command in a folder, and print how long it took."""
    name, *words = shlex.split(command)
    program = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert program is not None
    print(f"$ {command}", flush=True)
    begin = time.perf_counter()
    subprocess.run([program, *words], cwd=work, check=True, stderr=sys.stdout)
    print(f"  ({time.perf_counter() - begin:.0f} s)", flush=True)


def best_length(run: Path) -> float:
    """The best EMA length of a sweep."""
    from edm2lite import sweep

    found = sweep.best_average(sweep.read_csv(run / "sweep.csv")).sigma_rel
    assert found is not None
    return found


if __name__ == "__main__":
    main()
