"""What a page's reader is taken to have, what is made smaller, and what must come of it.

Each function prepares the working directory, yields while the page is run, and then checks.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from pages import DOCS, blocks, run, write_config
from PIL import Image
from tiny_run import TINY

from edm2lite import load, open_dataset
from edm2lite.models.adapters import read_adapter
from edm2lite.network.dit import DiTConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.patches import sine_positions
from edm2lite.sweep import read_csv
from edm2lite.training import load_config


class Page:
    """A page in a test.

    Attributes:
        names: The variables that its Python blocks share.
        printed: Output by command, or by the first line of a Python block.
        small: Makes a command smaller before it is run.
    """

    def __init__(self, request, monkeypatch):
        self.fixture, self.monkeypatch = request.getfixturevalue, monkeypatch
        self.names, self.printed, self.small = {}, {}, lambda line: line

    def finished_run(self, name="runs/digits"):
        """The run of the tests, under the name that the page gives it."""
        shutil.copytree(self.fixture("run_dir"), name)


def tiny_training(line):
    """The same training run with a network and a duration that take a second."""
    if "-m edm2lite.training digits " not in line:
        return line
    return line + "".join(f" --set {change}" for change in TINY)


def photos(folder="photos"):
    """A few pictures in two folders."""
    for number, name in enumerate(("Flags", "Smileys")):
        Path(folder, name).mkdir(parents=True)
        for i in range(20):
            color = (12 * i, 128 * number, 128, 255)
            picture = Image.new("RGBA", (40, 40))
            picture.paste(color, (4 + i // 2, 8, 30, 32))
            picture.save(Path(folder, name, f"{i}.png"))


def tiny_pictures(line):
    """The same commands with a network, a duration and numbers of images that take seconds."""
    if "edm2lite train" in line:
        size = {"model_channels": 16, "head_channels": 16}
        few = "" if "total_nimg" in line else " --set total_nimg=2560"
        if "--fork" in line:
            return line.replace("128k", "5120")
        return line + few + "".join(f" --set net.backbone.{k}={v}" for k, v in size.items())
    line = line.replace(
        "edm2lite sweep runs/photos", "edm2lite sweep runs/photos --num 20 --steps 1"
    )
    return line.replace("--seeds 0-31", "--seeds 0-3 --steps 2")


def tutorial(page):
    photos()
    page.monkeypatch.setattr("edm2lite.sweep.defaults.SAMPLES", {"cpu": 128, "cuda": 128})
    page.small = tiny_pictures
    yield
    assert open_dataset("runs/photos/dataset.zip").class_names == ("Flags", "Smileys")
    assert load("runs/photos").class_names == ("Flags", "Smileys")
    assert len(read_csv(Path("runs/photos/sweep.csv"))) == 9
    with Image.open("grid.png") as picture:
        assert picture.width >= 64
    assert load_config("runs/slower").total_nimg == 5120


def readme(page):
    photos()
    page.small = tiny_pictures
    page.monkeypatch.setattr("edm2lite.sweep.defaults.SAMPLES", {"cpu": 128, "cuda": 128})
    page.names |= {"model": torch.nn.Linear(3, 1), "nimg": 32}
    yield
    page.names["model"].load_state_dict(page.names["best"].state_dict)


def ema(page):
    from ema_pytorch import PostHocEMA

    from edm2lite.ema import list_snapshots, sigma_rel_to_gamma

    net = torch.nn.Linear(2, 2)
    other = PostHocEMA(
        net, sigma_rels=(0.05, 0.28), update_every=10, checkpoint_folder="FOLDER",
        checkpoint_every_num_steps=50,
    )  # fmt: skip
    for _ in range(100):
        other.update()
    yield
    rows = [line.split() for line in page.printed["import torch"].splitlines()]
    assert [row[0] for row in rows] == ["0.03", "0.07", "0.13"]
    errors = [float(row[1]) for row in rows]
    # noise of standard deviation 1 at lr 0.05 leaves about 0.1 per weight in the raw iterates; the
    # longer the average the less
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.15
    assert all(float(row[-1]) < 0.02 for row in rows)
    assert len(list_snapshots("runs/mine")) == 60
    # weights on a ramp, and the two clocks of a fine-tuning: sums over the 60 updates
    lines = page.printed["tuned = torch.nn.Linear(20, 1)"].splitlines()
    for line, start in zip(lines, (0, 19_200), strict=True):
        counts = start + 32 * np.arange(61)
        share = np.diff((counts / counts[-1]) ** (float(sigma_rel_to_gamma(0.10)) + 1))
        expected = share @ np.arange(1, 61) / 60
        assert abs(float(line.split()[-8]) - expected) < 0.0051
    (counted,) = (t for name, t in page.printed.items() if name.startswith("scaler, ema"))
    assert counted == "96 samples counted, 0 updates refused\n"
    net = page.names["net"]  # whose statistics fit the average: its output has none left over
    hidden = net[0](torch.randn(4000, 20))
    assert (hidden.mean(0) - net[1].running_mean).abs().max() < 0.3 * hidden.std(0).max()
    assert {p.name for p in Path("runs").iterdir()} >= {"ddp", "batchnorm", "tokens"}
    # "The idea in twelve lines": sums over 1000 steps in place of integrals, on both sides
    difference = np.abs(page.names["x"] - page.names["library"]).max()
    assert 0 < difference < 1e-5 and page.names["x"].shape == (40,)
    gap = np.linalg.norm(page.names["rebuilt"] - page.names["direct"])
    assert gap < 1e-3 * np.linalg.norm(page.names["direct"])
    (kernel,) = (block.text for block in blocks("ema.md") if "lstsq" in block.text)
    assert len([line for line in kernel.splitlines() if line.strip()]) == 12
    # what the commands and their Python forms print is the same
    (tracks,) = (t for name, t in page.printed.items() if "import import_folder" in name)
    assert tracks.splitlines()[0] == "asked for gamma 16.97, tracked 0.80"


def checkpoints(page):
    """A folder of Hugging Face's Trainer, with a model of a few thousand parameters."""
    import transformers

    sizes = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "n_positions": 8}
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    for step in range(100, 900, 100):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * torch.randn_like(p)
        folder = Path(f"trainer_output/checkpoint-{step}")
        model.save_pretrained(folder, max_shard_size="8KB")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    yield
    (printed,) = (text for name, text in page.printed.items() if "plan_targets" in name)
    merged, best = (float(line.split()[-1].rstrip("%")) for line in printed.splitlines())
    assert best < merged / 1.3  # as the page says
    assert not list(Path("runs/llm/snapshots").glob("ema*"))
    assert Path("models/linear/config.json").is_file()


def sweep(page):
    from edm2lite.metrics import evaluate
    from edm2lite.sampling import Sampling
    from edm2lite.sweep import run_sweep

    page.finished_run()
    small = {"--num": "66", "--steps": "1", "--sigma-rel": "0.05,0.2", "--guidance": "1,1.5"}

    def shrink(line):
        line = line.replace("12800", "640").replace("38400,64000", "640,1280")
        for option, value in small.items():
            line = re.sub(rf"{option} \S+", f"{option} {value}", line)
        return line

    page.small = shrink

    def small_sweep(options, progress=None):
        fields = {"num": 66, "sampling": Sampling(num_steps=1)}
        fields["sigma_rel"] = () if options.search else (0.05, 0.2)
        fields["at"] = (640, 1280) if options.at else ()
        fields["guidance"] = (1, 1.5) if options.guide else (1,)
        fields["guide"] = options.guide and options.guide.replace("12800", "640")
        swept.append(options)
        return run_sweep(dataclasses.replace(options, **fields), progress)

    def small_evaluation(*arguments, **options):
        return evaluate(*arguments, **options | {"num": 66})

    swept = []
    page.monkeypatch.setattr("edm2lite.sweep.driver.run_sweep", small_sweep)
    page.monkeypatch.setattr("edm2lite.metrics.evaluate", small_evaluation)
    run("edm2lite classifier --out runs/digits/classifier.safetensors")
    run(
        "edm2lite evaluate stats digits --extractor digits"
        " --weights runs/digits/classifier.safetensors --out runs/digits/reference.safetensors"
    )
    yield
    used = {word for line in page.printed for word in line.split() if word.startswith("--")}
    assert used >= {"--search", "--guidance", "--groups", "--metric", "--at"}
    # every sweep has its form in Python, of the same lengths and into the same folder
    commands = [line for line in page.printed if line.startswith("sweep_ema")]
    assert {str(o.out) for o in swept} >= {line.split()[-1] for line in commands}
    assert page.names["score"].num == 66
    for folder in ("length", "guidance", "groups", "loss", "kid"):
        made = {path.name for path in Path("sweeps", folder).iterdir()}
        assert made >= {"sweep.csv", "sweep.png", "sweep.md", "sweep.html", "sweep.jsonl"}


def sampling(page):
    page.finished_run()
    # the run of the tests is short, and has no snapshot at the time that the page shows
    page.small = lambda line: line.replace("nimg=12800", "nimg=640")
    yield
    first = next(text for name, text in page.printed.items() if name == "import torch")
    assert len(first.splitlines()) == 32
    names = page.names
    assert torch.equal(names["told"], names["same"])
    assert not torch.equal(names["told"], names["few"])
    assert names["guided"].shape == (64, 1, 8, 8) and names["mine"].shape == (1, 1, 8, 8)
    assert len(list(Path("images").rglob("*.png"))) == 50
    assert names["image"].dtype == torch.uint8 and names["image"].shape == (1, 1, 8, 8)
    assert torch.equal(names["filled"][:, :, 4:], names["x"][:, :, 4:])
    assert not torch.equal(names["filled"][:, :, :4], names["x"][:, :, :4])


def data(page):
    from edm2lite.training.config import load_config

    shutil.copytree(page.fixture("photos"), "photos")
    shutil.copytree(page.fixture("vae"), "vae")
    (module,) = (b for b in blocks("data.md") if b.name == "# turned.py")
    Path("turned.py").write_text(module.text, encoding="utf-8")
    page.monkeypatch.syspath_prepend(Path.cwd())  # as `python -m` does
    page.small = tiny_training
    yield
    for folder in ("images", "colored"):
        assert len(list(Path(folder).rglob("*.png"))) == 4
    for name in ("sheet.png", "decoded.png", "pairs.png"):
        with Image.open(name) as sheet:
            assert sheet.width > 500
    info = page.printed["edm2lite dataset info colorize.zip"]
    assert "mean 0.000 and standard deviation 1.000 as a network sees it" in info
    assert page.names["told"]["image"].shape == (3, 1, 8, 8)
    assert Path("runs/turned/last.safetensors").is_file()
    assert load_config("runs/photos/config.yaml").encoder.vae == str(Path("vae").resolve())
    assert load_config("runs/photos-ar/config.yaml").data.buckets


def network(page):
    page.small = tiny_training
    yield
    costs = page.printed["edm2lite magnitudes --flops"].splitlines()
    small = next(line for line in costs if line.startswith("edm2-img512-s "))
    assert small.split()[1:] == ["280.213", "100.23", "0.593", "100.82"]
    with Image.open("magnitudes.png") as picture:
        assert picture.width > 500
    assert Path("net.safetensors").is_file()


def training(page):
    write_config("CONFIG", {})
    for k in range(2):  # latents as those of the EDM2 paper are stored
        Path("DATASET").mkdir(exist_ok=True)
        np.save(f"DATASET/{k}.npy", np.ones((8, 64, 64), np.float32))
    labels = [["0.npy", 0], ["1.npy", 999]]
    Path("DATASET/dataset.json").write_text(json.dumps({"labels": labels}))
    # the page's RUN is any run; here it is that of CONFIG by then
    page.small = lambda line: tiny_training(line.replace("-s --out RUN", "-s --out ANOTHER"))
    yield
    (dry_run,) = (text for line, text in page.printed.items() if "--dry-run" in line)
    assert "280" in dry_run and not Path("ANOTHER").exists()
    assert Path("RUN/last.safetensors").is_file() and Path("runs/digits/curves.png").is_file()
    assert '"weight_norm"' in Path("runs/hooked/stats.jsonl").read_text()
    (validation,) = (text for text in page.printed.values() if "'raw'" in text)
    assert "'sigma_rel=0.05'" in validation and "'sigma 0.02'" in validation
    assert len(next(t for k, t in page.printed.items() if "Sink, flat" in k).splitlines()) == 2


def objectives(page):
    runs = {
        "objectives/edm2": ("edm", "lognormal", {}),
        "objectives/v": ("v", "cosine", {}),
        "objectives/flow": ("flow", "logit_normal", {}),
        "zero_terminal_snr/with": ("trigflow", "ddpm", {"zero_terminal_snr": True}),
    }
    for name, (parametrization, kind, more) in runs.items():
        net = {"parametrization": parametrization, "backbone": {"...": None}}
        write_config(f"runs/{name}/config.yaml", {"net": net, "loss": {"kind": kind, **more}})
    yield
    with Image.open("objectives.png") as picture:
        assert picture.width > 500


def importing(page):
    from interop.official_files import SMALL, random_net, write
    from models.test_hub import Hub, install

    from edm2lite.models.hub import save_pretrained

    page.finished_run()
    write(Path("edm2-img64-s-1073741-0.075.pkl"), random_net(SMALL))
    for kimg in (1048, 2097, 3145, 4194):
        for length in ("0.050", "0.100"):
            write(Path("00000-edm2-img512-xs", f"n-{kimg:07d}-{length}.pkl"), random_net(SMALL))
    hub = Hub()
    install(page.monkeypatch, hub)
    hub.hf_hub_download = lambda repo_id, filename, revision: str(
        save_pretrained(hub.content, "cache", license="mit") / filename
    )
    yield
    assert hub.made == {"me/edm2-digits": {"private": False, "exist_ok": True}}
    assert page.names["model"].identity == hub.content.identity


def extending(page):
    yield
    lines = [json.loads(x) for x in Path("runs/hooked/stats.jsonl").read_text().splitlines()]
    assert [x["nimg"] for x in lines if x.get("distance_to_average", 0) > 0] == [
        320,
        640,
        960,
        1280,
    ]
    for name in ("midpoint", "dit", "inked", "theirs"):
        assert len(list(Path("images", name).rglob("*.png"))) == 16
    plain, imported = (
        load("runs/plain").net.state_dict(),
        load("theirs.safetensors").net.state_dict(),
    )
    assert all(imported[name].equal(value) for name, value in plain.items())
    dit = read_csv(Path("runs/dit/sweep.csv"))
    assert [p.sigma_rel for p in dit if p.sigma_rel] == [0.05, 0.1, 0.2]
    for point in read_csv(Path("runs/gated/blank/sweep.csv")):
        assert 0 <= point.value <= 1
    blank = np.mean([np.ptp(np.array(Image.open(p)).astype(int)) < 30
                     for p in sorted(Path("images/midpoint").rglob("*.png"))])  # fmt: skip
    evaluated = page.printed["edm2lite evaluate images/midpoint --metrics my_metric:Blank"]
    assert f"{blank:.4f}" in evaluated


def ladder(page):
    changes = ("batch_size=8", "total_nimg=48", "status_nimg=16", "snapshot_nimg=16",
               "checkpoint_nimg=48", "magnitudes_nimg=16")  # fmt: skip
    small = "".join(f" --set {change}" for change in changes)
    page.small = lambda line: line + small if "-m edm2lite.training" in line else line
    yield
    with Image.open("magnitudes.png") as picture:
        assert picture.width > 500
    text = (DOCS / "ladder.md").read_text(encoding="utf-8")
    for line, value in (
        ("parameters here, million", lambda net: f"{num_parameters(net) / 1e6:.4f}"),
        ("convolutions and products, GMAC", lambda net: f"{count_macs(net).total / 1e9:.2f}"),
    ):
        stated = re.search(rf"^\| {line} \| (.*) \|$", text, re.M)[1].split(" | ")
        nets = [load_config(f"ladder-{r}", ["data.source=x"]).net.backbone for r in "abcdefg"]
        assert stated == [value(net) for net in nets]


def transformers(page):
    net = DiTConfig(
        img_resolution=8, img_channels=4, label_dim=3, patch_size=4, width=384, num_blocks=1,
        num_heads=6, mlp_ratio=1,
    ).build()  # fmt: skip
    tensors = {n.replace("layers.", "blocks."): v for n, v in net.state_dict().items()}
    fixed = sine_positions(2, 2, 2, 384, torch.device("cpu"))
    torch.save({"pos_embed": fixed[None], **tensors}, "DiT-XL-2-256x256.pt")
    changes = ("batch_size=8", "total_nimg=48", "status_nimg=16", "snapshot_nimg=16",
               "checkpoint_nimg=48", "net.backbone.num_blocks=2")  # fmt: skip
    small = "".join(f" --set {change}" for change in changes)
    page.small = lambda line: line + small if "-m edm2lite.training" in line else line
    yield
    assert len(list(Path("images/mp-dit").rglob("*.png"))) == 10
    assert load("DiT-XL-2-256x256.safetensors").metadata["license"] == "cc-by-nc-4.0"
    assert page.names["trained"] == 32_865_056


def text(page):
    colors = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
    Path("squares").mkdir()
    for i in range(40):  # in place of the emoji
        name, color = list(colors.items())[i % 3]
        Image.new("RGB", (32, 32), color).save(f"squares/{i}.png")
        Path(f"squares/{i}.txt").write_text(f"a {name} square {i}")
    changes = ("batch_size=8", "microbatch=8", "total_nimg=48", "status_nimg=48",
               "snapshot_nimg=24", "checkpoint_nimg=48", "net.backbone.model_channels=16",
               "net.backbone.head_channels=16")  # fmt: skip
    small = "".join(f" --set {change}" for change in changes)

    def shrink(line):
        line = line.replace("--num 400", "--num 12").replace("--seeds 0-499", "--seeds 0-11")
        line = line.replace("convert openmoji", "convert squares")
        line = line.replace("--data emoji.zip", "--data emoji.zip --samples 128")
        line = line.replace("--steps 8", "--steps 2").replace("--grid", "--steps 2 --grid")
        return line + small if "-m edm2lite.training" in line else line

    page.small = shrink
    yield
    for name in ("two", "hearts", "face"):
        with Image.open(f"{name}.png") as picture:
            assert picture.width > 100
    assert page.names["images"].shape == (2, 3, 32, 32)
    assert load("runs/emoji@sigma_rel=0.10").text_encoder == load("runs/stored").text_encoder
    assert [p.sigma_rel for p in read_csv(Path("sweeps/fd/sweep.csv"))] == [None, 0.05, 0.1]


def control(page):
    page.finished_run()
    Path("squares").mkdir()
    for i, color in enumerate(["red", "green", "blue", "black"] * 3):  # in place of the emoji
        picture = Image.new("RGB", (16, 16), "white")
        picture.paste(color, (4, 4, 12, 12))
        picture.save(f"squares/{i}.png")
    digits = open_dataset("digits").images([13])
    mask = np.where(np.arange(8)[:, None] < 4, 255, 0).repeat(8, axis=1).astype(np.uint8)
    for name, pixels in {"three": digits[0, 0], "outline": digits[0, 0], "upper": mask}.items():
        Image.fromarray(pixels).save(f"{name}.png")

    def shrink(line):
        line = line.replace("--steps 18", "--steps 2").replace("0000032000", "0000001280")
        line = line.replace("convert openmoji", "convert squares")
        if "-m edm2lite.training" not in line:
            return line
        return line + "".join(f" --set {change}" for change in TINY)

    page.small = shrink
    yield
    for name in ("large", "colored", "followed", "threes", "variations", "filled"):
        with Image.open(f"{name}.png") as picture:
            assert picture.width >= 24
    written, shipped = load_config("control.yaml"), load_config("digits-control")
    for part in ("data", "loss", "optim", "encoder", "total_nimg", "snapshot_nimg"):
        assert getattr(written, part) == getattr(shipped, part)
    assert page.names["images"].shape == (4, 1, 8, 8)
    assert page.printed["import torch"] == "True\n"


def finetune(page):
    changes = ("batch_size=8", "microbatch=8", "total_nimg=32", "status_nimg=32",
               "snapshot_nimg=8", "checkpoint_nimg=32", "net.backbone.model_channels=16",
               "net.backbone.head_channels=16", "optim.rampup_nimg=0")  # fmt: skip
    small = "".join(f" --set {change}" for change in changes)

    def shrink(line):
        line = line.replace("--grid", "--steps 2 --grid").replace("generate: 180", "generate: 9")
        if "word.yaml" in line:
            return line + small.partition(" --set net.")[0]
        return line + small if "-m edm2lite.training" in line else line

    page.small = shrink
    shutil.copytree(page.fixture("text_run"), "runs/told")
    yield
    word = read_adapter("nine.safetensors").word
    assert word[0] == "<nine>" and word[1].shape == (2, 8)
    for name in ("nines", "nine", "half", "average"):
        with Image.open(f"{name}.png") as picture:
            assert picture.width >= 64
    assert page.names["images"].shape == (16, 1, 8, 8)
    base = load("runs/nine@sigma_rel=0.10")
    assert load("runs/tenth").metadata["base"] == base.name
    assert page.names["model"].identity != base.identity
    assert Path("runs/vector/last.safetensors").stat().st_size < 1024
    assert [p.sigma_rel for p in read_csv(Path("sweep/sweep.csv"))] == [None, 0.05, 0.1, 0.2]
    stored, gains = base.net.state_dict(), load("runs/gains").net.state_dict()
    moved = [name for name, value in gains.items() if not value.equal(stored[name])]
    assert moved and all("gain" in name for name in moved)
    assert len(open_dataset("runs/kept/prior.zip")) == 9
    tenth = read_adapter("runs/tenth").deltas()
    assert all(
        delta.equal(tenth[n]) for n, delta in read_adapter("again.safetensors").deltas().items()
    )
    assert read_adapter("from-peft.safetensors").ranks == {"unet.emb_label": 4, "unet.emb_noise": 4}
    assert max(read_adapter("thin.safetensors").ranks.values()) == 4
    outside = next(text for line, text in page.printed.items() if "--outside-wn" in line)
    assert float(re.search(r"at most (\S+) in a layer", outside)[1]) <= 0.1


def play(page):
    page.finished_run()
    yield
    assert "predicted error" in page.printed["import dataclasses"]
    with Image.open("threes.png") as picture:
        assert picture.width > 200


def num_parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def decay(page):
    page.finished_run("RUN")
    yield
    shown = page.printed["from edm2lite.ema import plan_targets, reconstruct"].splitlines()
    assert [line.split()[0] for line in shown] == ["linear:0.2", "1-sqrt:0.1"]
    assert len(list(Path("RUN/decayed").iterdir())) == 3
    assert read_csv(Path("RUN/decays/sweep.csv"))[1].decay == "linear:0.25"
    (logged,) = (text for line, text in page.printed.items() if "--lr-log" in line)
    assert "linear:0.5" in logged


NEEDS = {
    "checkpoints.md": checkpoints,
    "decay.md": decay,
    "control.md": control,
    "finetune.md": finetune,
    "extending.md": extending,
    "ladder.md": ladder,
    "transformers.md": transformers,
    "README.md": readme,
    "tutorial.md": tutorial,
    "index.md": readme,
    "data.md": data,
    "ema.md": ema,
    "import.md": importing,
    "network.md": network,
    "objectives.md": objectives,
    "play.md": play,
    "sampling.md": sampling,
    "sweep.md": sweep,
    "text.md": text,
    "training.md": training,
}
