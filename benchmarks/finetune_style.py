"""The second story of docs/finetune.md: a model of emoji learns a style from 48 pictures.

The pictures are emoji at night, pale yellow on dark blue, with captions that say so. A low-rank
adapter is trained on them. The picture shows prompts by the strength of the adapter: subjects that
were drawn in the style, and subjects that were not.

Example:
  edm2lite dataset convert openmoji emoji.zip --resolution 32
  python -m edm2lite.training emoji --out runs/emoji
  python benchmarks/finetune_style.py runs/emoji --data emoji.zip --out runs/night
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edm2lite import Sampling, generate, load, open_dataset
from edm2lite.plotting.images import plot_images
from edm2lite.training import Trainer, load_config

STYLE = "at night "
KNOWN = ("red heart", "pizza", "rocket")
OTHERS = ("grinning face", "four leaf clover", "dog face")
STRENGTHS = (0.0, 0.3, 0.6, 1.0)
CONFIG = """
init: {base}
data: {{source: {source}, label_dropout: 0.1}}
tune: {{kind: lora, rank: 4}}
loss: {{P_mean: 0.4, P_std: 1.2}}
optim: {{ref_lr: 0.01, ref_batches: 0, rampup_nimg: 320}}
batch_size: 16
microbatch: 16
total_nimg: {nimg}
status_nimg: 160
snapshot_nimg: 160
checkpoint_nimg: {nimg}
threads: 1
"""


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", required=True, help="Data set of the run.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the adapter."
)
@click.option("--nimg", default=4800, show_default=True, help="Number of images to train on.")
@click.option("--steps", default=8, show_default=True, help="Number of steps of Heun's method.")
@click.option("--picture", type=click.Path(path_type=Path), help="[default: OUT.png]")
def main(run: Path, data: str, out: Path, nimg: int, steps: int, picture: Path | None) -> None:
    """Teach the model of RUN a style, and draw what it makes of it."""
    torch.set_num_threads(1)
    base = f"{run}@sigma_rel=0.10"
    source = night_pictures(data, out.with_name(f"{out.name}-data"))
    path = out.with_name(f"{out.name}.yaml")
    path.write_text(CONFIG.format(base=base, source=source, nimg=nimg))
    if not (out / "last.safetensors").is_file():
        Trainer(load_config(str(path)), out, torch.device("cpu")).train()
    prompts = [STYLE + name for name in (*KNOWN, *OTHERS)]
    sampling = Sampling(num_steps=steps, guidance=2.0)
    rows = [
        generate(load(base, [f"{out}@sigma_rel=0.10:{s}"]), prompts=prompts, sampling=sampling)
        for s in STRENGTHS
    ]
    columns = [*KNOWN, *OTHERS]
    plot_images(
        picture or out.with_suffix(".png"),
        [row.numpy() for row in rows],
        [f"{s:g}" for s in STRENGTHS],
        columns,
    )


def night_pictures(data: str, folder: Path, num: int = 48) -> Path:
    """A folder of emoji at night, a caption beside each; those of OTHERS are left out."""
    dataset = open_dataset(data)
    assert dataset.captions is not None
    texts = [dataset.captions.text(i) for i in range(len(dataset))]
    known = [texts.index(name) for name in KNOWN]
    spread = [i for i in range(0, len(texts), len(texts) // num) if texts[i] not in OTHERS]
    folder.mkdir(parents=True, exist_ok=True)
    for i in [*known, *spread][:num]:
        Image.fromarray(at_night(dataset.read(i))).save(folder / f"{i:05d}.png")
        (folder / f"{i:05d}.txt").write_text(f"{STYLE}{texts[i]}\n", encoding="utf-8")
    return folder


def at_night(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[3, H, W] -> [H, W, 3]: what was white becomes dark blue, what was black pale yellow."""
    luminance = (image.astype(np.float64) * np.array([0.3, 0.59, 0.11])[:, None, None]).sum(0) / 255
    dark, light = np.array([15.0, 25.0, 80.0]), np.array([255.0, 240.0, 170.0])
    return (light + luminance[..., None] * (dark - light)).round().astype(np.uint8)


if __name__ == "__main__":
    main()
