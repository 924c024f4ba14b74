"""Mistakes that people make in their first hour: one line each, no traceback, nothing written."""

import shlex
import shutil
import zipfile

import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.tools.edm2lite import main

TRAIN = "train digits --out r"
IMAGES = "--seeds 0 --steps 1 --out images"
RUN = "run@sigma_rel=0.1"

MISTAKES = {  # command line -> part of the line
    "trai digits --out r": "there is no command 'trai'; try edm2lite train",
    "info run": "try edm2lite snapshots RUN, edm2lite dataset info DATASET, or",
    "finetune run": "try edm2lite train CONFIG --set init=MODEL",
    "nonsense": "there is no command 'nonsense'; edm2lite -h lists all commands",
    "dataset shrink photos": "there is no command 'shrink'; edm2lite dataset -h lists all",
    "train digits": "Missing option '--out'; see edm2lite train -h",
    "train digit --out r": "there is no configuration digit; did you mean digits?",
    "train nets/mine.yaml --out r": "there is no configuration nets/mine.yaml; edm2lite config",
    "train broken.yaml --out r": "broken.yaml must be YAML: line 2: expected ',' or '}'",
    "train list.yaml --out r": "list.yaml must hold keys and values, found a list",
    "train notes.txt --out r": "notes.txt must hold keys and values, found text",
    "train data.zip --out r": "data.zip must be a YAML file, and is no text",
    "train photos --out r": "photos must be a YAML file, a run or a name",
    "train typo.yaml --out r": "unknown key optm; the nearest known one is optim",
    "train cifar10 --out r": "data.source must be given and is missing; --set data.source=",
    f"{TRAIN} --lr 0.1": "there is no option --lr; write --set optim.ref_lr=",
    f"{TRAIN} --batch-size 32": "there is no option --batch-size; write --set batch_size=",
    f"{TRAIN} --epochs 10": "there is no option --epochs; write --set total_nimg=",
    f"{TRAIN} --resume": "there is no option --resume; the same command line continues",
    f"{TRAIN} --gpus 8": "there is no option --gpus; start it by torchrun",
    f"{TRAIN} --set total_nimg": "--set takes key=value, got 'total_nimg'; for example",
    f"{TRAIN} --set lr=0.1": "unknown key lr; the nearest known one is optim.ref_lr",
    f"{TRAIN} --set optim.ref_lr=fast": "optim.ref_lr must be a number, got 'fast'",
    f"{TRAIN} --set total_nimg=8m": "total_nimg must be a whole number, as in 50000, 10k",
    f"{TRAIN} --set total_nimg=1000": "must be a multiple of batch_size = 64, got 1000; the near",
    f"{TRAIN} --set ema.sigma_rels=0.05,0.1": "must be a list, as in [0.05, 0.1], got '0.05,0.1'",
    f"{TRAIN} --set net.backbone.attn_resolutions=[7]": "among the resolutions 8, 4 of the network",
    f"{TRAIN} --set net.backbone.img_resolution=7": "img_resolution must be a multiple of 2 with",
    f"{TRAIN} --set net.backbone.label_dim=3": "must take what digits has (10 classes) or less",
    f"{TRAIN} --set net.dtype=half": "net.dtype must be 'float32', 'float16' or 'bfloat16'",
    f"{TRAIN} --set data.source=fotos": "no data set at fotos; give a folder or ZIP",
    f"{TRAIN} --set data.source=photos": "img_channels must be the 3 channels of photos, got 1",
    f"{TRAIN} --set data.source=empty": "empty must hold images",
    "train digits --out notes.txt": "Directory 'notes.txt' is a file",
    "train digits --out run": "run belongs to a run of another configuration: batch_size (32 in",
    "reconstruct run": "give the averages with one of --sigma-rel, --gamma and --decay",
    "reconstruct ru --sigma-rel 0.1": "there is no folder ru; give the folder of a run",
    "reconstruct run --sigma-rel 0.9": "sigma_rel must lie between 0 and 0.2887",
    "reconstruct run --sigma-rel 10%": "'10%' must be a number or start:end:step",
    "reconstruct run --sigma-rel 0.1 --at 7": "none is at nimg = 7; the nearest is",
    "reconstruct run --at 8x --sigma-rel 0.1": "'8x' must be a whole number, as in 50000, 10k",
    "reconstruct unfinished --sigma-rel 0.1": "holds no EMA snapshot",
    "reconstruct run --decay cosinus:0.2": "a decay must be one of linear, cosine, 1-sqrt",
    "reconstruct run --sigma-rel 0.1 --out notes.txt": "Directory 'notes.txt' is a file",
    "sweep photos --sigma-rel 0.1": "--ref must be given: photos has no config.yaml",
    "train --data photos --out new": "--data must hold at least 16 pictures, photos has 2",
    "train --data nowhere --out new": "--data must name pictures, there is nothing at nowhere",
    "train --fork run@7 --out new": "run must have a checkpoint of 7 images to branch off there",
    "train --out new": "give pictures, as in --data PHOTOS, or a CONFIG",
    "sweep run --sigma-rel 0.1 --metric loss": "--metric loss takes --data",
    "sweep run --sigma-rel 0.1 --metric fidd --ref x": "metric must be one of fid, fd_dinov2, kid",
    "sweep run --sigma-rel 0.1 --reference x": "there is no option --reference; write --ref",
    "generate": "give either MODEL, or --recipe with --weights",
    "generate run": "give --out, or --grid in one process",
    "generate run --num 10 --out images": "there is no option --num; --seeds 0-63 makes 64 images",
    "generate run --cfg 2 --out images": "there is no option --cfg; write --guidance 2",
    "generate run --seeds 10-5 --out images": "'10-5' must be a seed or a range of seeds",
    f"generate rum {IMAGES}": "no model at rum; give a file, a run, or RUN@sigma_rel=0.10",
    f"generate unfinished {IMAGES}": "has no last.safetensors yet; give an average of it so far",
    f"generate data.zip {IMAGES}": "data.zip must be a model, it is a ZIP",
    f"generate cut.safetensors {IMAGES}": "cut.safetensors holds",
    f"generate run@0.1 {IMAGES}": "must name an average as RUN@sigma_rel=0.10",
    f"generate {RUN} --class 12 {IMAGES}": "must be one of the 10 classes of run@sigma_rel=0.1",
    f"generate {RUN} --guidance 2 {IMAGES}": "--guide and --guidance go together",
    f"generate {RUN} --guide unconditional --guidance 2 {IMAGES}": "trained without label dropout",
    f"generate {RUN} --prompt cat {IMAGES}": "takes no prompts, it is told no text",
    f"generate {RUN} --solver dpm {IMAGES}": "'dpm' must be one of heun, dpmpp_2m, euler",
    f"generate {RUN} --size 9x9 {IMAGES}": "sides are multiples of 2, got 9 x 9",
    f"generate {RUN} --strength 0.5 {IMAGES}": "--strength needs --init-image",
    "generate --recipe edm2 --weights empty --out images": "there is no recipe 'edm2'; the nearest",
    f"generate {RUN} --dtype fp16 {IMAGES}": "'fp16' is not one of 'float32', 'float16'",
    f"evaluate {RUN}": "fid needs reference statistics, got none; give --ref",
    f"evaluate {RUN} --ref data.zip": "make them with edm2lite evaluate stats data.zip",
    "evaluate stats photos --extractor digits --out s.safetensors": "needs a weights file; make it",
    "snapshots empty": "empty holds no snapshot; give a run that has saved some",
    "plan --duration 300X --params 1B": "'300X' must be a whole number, as in 50000, 10k, 64Ki",
    "plot empty": "there is no empty/stats.jsonl; give the folder of a run",
    "ema-units --decay 0.9999": "depends on the training time: give --at and --batch",
    "dataset convert fotos out.zip": "there is no folder or ZIP fotos",
    "dataset convert photos photos": "photos exists; remove it, or give another name",
    "dataset convert photos o.zip --background bluish": "must be an opaque color such as white",
    "import notes.txt": "a single file must be a network pickle of EDM2",
    "adapters merge run --adapter model.safetensors --out m.safetensors": "must be an adapter",
    "config digit": "there is no configuration digit; did you mean digits?",
}


@pytest.fixture(scope="module")
def place(run_dir, tmp_path_factory):
    """A folder of files that a beginner may have."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(run_dir, folder / "run")
    for name in ("empty", "unfinished/snapshots", "photos/cats", "photos/dogs"):
        (folder / name).mkdir(parents=True)
    for name in ("config.yaml", "run.json"):
        shutil.copy(run_dir / name, folder / "unfinished")
    for name in ("cats/0.png", "dogs/0.png"):
        Image.new("RGB", (16, 16), "red").save(folder / "photos" / name)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.write(folder / "photos/cats/0.png", "cats/0.png")
    (folder / "notes.txt").write_text("remember the milk")
    (folder / "broken.yaml").write_text("data: {source: digits\nnet: [")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "typo.yaml").write_text("base: digits\noptm: {ref_lr: 0.01}\n")
    model = (run_dir / "last.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(model)
    (folder / "cut.safetensors").write_bytes(model[: len(model) // 2])
    return folder


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(line, place, monkeypatch):
    monkeypatch.chdir(place)
    before = files(place)
    result = CliRunner().invoke(main, shlex.split(line), prog_name="edm2lite")
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2), result.output
    assert not result.stdout
    assert result.stderr.startswith("Error: ") and len(result.stderr.splitlines()) == 1
    assert MISTAKES[line] in result.stderr, result.stderr
    assert files(place) == before


def test_there_are_sixty_mistakes_of_all_main_commands():
    assert len(MISTAKES) >= 60
    commands = {line.split()[0] for line in MISTAKES}
    assert commands >= {"train", "reconstruct", "sweep", "generate", "evaluate", "dataset", "plan"}
