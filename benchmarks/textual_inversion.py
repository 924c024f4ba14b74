"""Numbers and the picture of a learned word in docs/finetune.md: the nine that had no name.

A model of all digits is told captions, "the digit seven", but none for the nines: it can draw them
and knows no word for them. A word is learned from twenty nines. Images of prompts are judged by an
SVC on pixels, before and after. What is there already is not made again.

Example:
  python benchmarks/textual_inversion.py --runs runs/word --pictures docs/images
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from finetune import judged, train
from PIL import Image

from edm2lite import Sampling, generate, load, open_dataset
from edm2lite.models import Model
from edm2lite.plotting.images import plot_images

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
NEW, WORD = 9, "<nine>"
TEXT = {"pooled": 256, "tokens": 256, "num_tokens": 8, "attn_resolutions": [4]}


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--num", default=100, show_default=True, help="Images per prompt.")
@click.option("--steps", default=16, show_default=True, help="Number of steps of Heun's method.")
@click.option("--base-nimg", default=64000, show_default=True, help="Images of the base.")
@click.option("--pictures", type=click.Path(path_type=Path), help="[default: that of the runs]")
@click.option("--set", "changes", multiple=True, help="Change of the run of the word.")
def main(
    runs: Path, num: int, steps: int, base_nimg: int, pictures: Path | None, changes: tuple[str]
) -> None:
    """Train, measure and draw."""
    torch.set_num_threads(1)
    folder = captioned(runs / "digits")
    told = [f"net.backbone.text={json.dumps(TEXT)}", "text={kind: static, num_tokens: 8}"]
    told += ["net.backbone.label_dim=0", "data.label_dropout=0.1", f"total_nimg={base_nimg}"]
    train("digits", runs / "base", f"data.source={folder}", *told)
    name, sampling, judge = f"{runs / 'base'}@sigma_rel=0.10", Sampling(num_steps=steps), judged()
    tune = {"kind": "textual_inversion", "word": WORD, "start": "the digit", "vectors": 2}
    tune["texts"] = ["{}", "the digit {}"]
    own = ["data.label_dropout=0.1", f"tune={json.dumps(tune)}"]
    train("digits-word", runs / "nine", f"init={name}", *own, *changes)
    base, taught = load(name), load(f"{runs / 'nine'}@sigma_rel=0.10")
    print("| model | prompt | nines | digits 0 to 8 by their names |")
    print("|---|---|---|---|")
    for title, model in (("the model", base), ("with the word", taught)):
        for prompt in ("the digit nine", f"the digit {WORD}", WORD):
            nines = share(model, prompt, NEW, num, sampling, judge)
            known = [share(model, f"the digit {n}", i, num, sampling, judge)
                     for i, n in enumerate(NAMES)]  # fmt: skip
            print(f"| {title} | {prompt} | {nines:.0%} | {np.mean(known):.1%} |", flush=True)
    titles = {"the digit nine": base, f"the digit {WORD}": taught, WORD: taught}
    rows = [images(model, prompt, 10, sampling) for prompt, model in titles.items()]
    place = (pictures or runs) / "finetune-word.png"
    plot_images(place, rows, list(titles), [*map(str, range(10))])


def captioned(folder: Path) -> Path:
    """A folder of digits whose nines have no caption."""
    digits = open_dataset("digits")
    if not (folder / "metadata.jsonl").is_file():
        folder.mkdir(parents=True)
        lines = []
        for i, label in enumerate(digits.labels):
            Image.fromarray(digits.images([i])[0, 0]).save(folder / f"{i:04}.png")
            if label != NEW:
                row = {"file_name": f"{i:04}.png", "text": f"the digit {NAMES[label]}"}
                lines.append(json.dumps(row))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def images(model: Model, prompt: str, num: int, sampling: Sampling) -> Any:
    """Images [N, 1, 8, 8] of a prompt."""
    return generate(model, range(num), prompts=[prompt], sampling=sampling).numpy()


def share(model: Model, prompt: str, label: int, num: int, sampling: Sampling, judge: Any) -> float:
    """Share of images of a prompt that are of a class."""
    pixels = images(model, prompt, num, sampling).reshape(num, -1) * (16 / 255)
    return float((judge.predict(pixels) == label).mean())


if __name__ == "__main__":
    main()
