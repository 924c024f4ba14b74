"""The card of an exported run: images, measured values, training, no folders of this machine."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from sampling.generating import save_net

import edm2lite
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.models.config_json import config_json
from edm2lite.models.hub import save_pretrained
from edm2lite.models.model_card import Background, Samples, model_card
from edm2lite.network.unet import UNetConfig
from edm2lite.sweep import sweep_ema
from edm2lite.sweep.publish import background_of, export_model
from edm2lite.tools.edm2lite import main
from edm2lite.training import load_config

UNET = UNetConfig(img_resolution=8, img_channels=1, model_channels=64, label_dim=2)


@pytest.fixture(scope="module")
def run(run_dir, tmp_path_factory):
    """A run with two sweeps in its folder, whose data lay elsewhere on this machine."""
    run = tmp_path_factory.mktemp("somebody") / "digits"
    shutil.copytree(run_dir, run)
    text = (run / "config.yaml").read_text().replace("source: digits", "source: /home/me/x.zip")
    (run / "config.yaml").write_text(text)
    for num, folder in ((64, run), (65, run / "sweep-65")):
        sweep_ema(run, [0.1, 0.2], metric="loss", data="digits", num=num, out=folder).write(
            picture=False
        )
    return run


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export_model(
        f"{run}@sigma_rel=0.2", tmp_path_factory.mktemp("hub") / "digits", license="MIT"
    )


def section(folder, title):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def test_the_card_has_images_of_the_model_with_the_names_of_its_classes(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "![Images that the model generated](samples.png)" in text
    assert "Seeds 0 to 19, classes in turn, 32 steps." in text
    images = edm2lite.generate(edm2lite.load(folder), range(20), classes="all").numpy()
    picture = np.asarray(Image.open(folder / "samples.png"))
    # ten columns with their names above, images enlarged 8 times, 4 pixels between them
    top = picture.shape[0] - 2 * 68
    for i, image in enumerate(images):
        y, x = top + 68 * (i // 10), 4 + 68 * (i % 10)
        assert np.array_equal(picture[y : y + 64 : 8, x : x + 64 : 8], image[0])
    assert (picture[: top - 4] < 128).any(), "names"


def test_the_card_says_what_the_sweeps_of_the_run_have_measured(folder, run):
    lines = section(folder, "Measured").strip().splitlines()
    pattern = r"- loss (\d\.\d+) \(95 % interval (\S+) to (\S+)\): (\d+) images of digits, 1,280 .*"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match[4] for match in found] == ["65", "64"]
    sweep = sweep_ema(run, [0.1, 0.2], metric="loss", data="digits", num=64)
    (point,) = (p for p in sweep.points if p.sigma_rel == 0.2)
    stated = [float(found[1][k]) for k in (1, 2, 3)]
    assert stated == pytest.approx([point.value, point.low, point.high], rel=1e-3)
    other = background_of(str(run), edm2lite.load(run).metadata)
    assert len(other.metrics) == 2 and other.metrics[1] != lines[1].removeprefix("- ")
    assert background_of(f"{run}@sigma_rel=0.15", {"run": "another"}).metrics == ()


def test_the_configuration_in_the_card_trains_and_names_no_folder(folder, tmp_path):
    text = section(folder, "Training")
    (tmp_path / "again.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    config = load_config(tmp_path / "again.yaml")
    assert config.total_nimg == 1280 and config.data.source == "x.zip"
    stored = json.loads((folder / "config.json").read_text())
    assert stored["training"] == yaml.safe_load((tmp_path / "again.yaml").read_text())
    assert stored["sigma_rel"] == 0.2 and stored["nimg"] == 1280
    assert stored["model"] == json.loads(edm2lite.load(folder).metadata["model"])
    for path in (folder / "README.md", folder / "config.json"):
        assert "/home/me" not in path.read_text()


def test_what_the_card_says_about_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (code,) = re.findall(r"```python\n(.*?)```", section(folder, "Use"), re.S)
    names = {}
    exec(code, names)
    assert list(names["images"].shape) == [16, 1, 8, 8]
    with Image.open(folder.parent / "images.png") as picture:
        assert picture.width > 32
    assert "Nobody has checked" in section(folder, "Limitations")


def test_what_the_card_says_about_python_runs_with_images_to_follow(tmp_path, monkeypatch):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((8, 8), ord(name), np.uint8)).save(folder / f"{name}.png")
    table = {"conditions": {"image": [["a.png", "b.png"]]}}
    (folder / "dataset.json").write_text(json.dumps(table))
    net = save_net(tmp_path / "net.safetensors", label_dim=2, cond_channels=1)
    made = save_pretrained(net, tmp_path / "shown", license="mit")
    use = section(made, "Use")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", use, re.S)
    names = {}
    exec(code.replace("DATASET", "pairs"), names)
    assert list(names["images"].shape) == [16, 1, 8, 8] and "--conditions DATASET" in use


def test_an_encoder_of_text_is_named_without_its_folder():
    metadata = {
        "model": PrecondConfig(backbone=UNET).to_json(),
        "encoder": '{"kind":"latents","vae":"/home/me/vae","mean":[0.5],"std":[2.0]}',
        "source": "/home/me/x.pt", "class_names": '["/a/b", "c"]',
        "text_encoder": json.dumps({
            "kind": "static", "source": "/home/me/words", "num_tokens": 16, "words": ["mine"],
            "word_vectors": [[0.5, 0.25]],
        }),
    }  # fmt: skip
    stored = json.loads(config_json(metadata))
    assert stored["text_encoder"]["source"] == "words" and stored["encoder"]["vae"] == "vae"
    assert stored["text_encoder"]["words"] == ["mine"]
    assert "word_vectors" not in stored["text_encoder"] and stored["class_names"][0] == "/a/b"
    card = model_card(metadata, "mit", "name")
    assert "/home/me" not in card and "`words`" in card and '"vae":"vae"' in card


def test_front_matter_names_the_task_and_the_license(folder):
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["license"] == "mit" and front["pipeline_tag"] == "unconditional-image-generation"
    shown = UNetConfig(**{**vars(UNET), "cond_channels": 1})
    card = model_card({"model": PrecondConfig(backbone=shown).to_json()}, "mit", "name")
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-to-image"


def test_words_of_a_run_cannot_break_out_of_their_place_in_the_card():
    evil = "a\n## License\n<script>```\n"
    background = Background(
        samples=Samples(b"", evil), metrics=[evil], training={"seed": 1, "note": evil}
    )
    metadata = {"model": PrecondConfig(backbone=UNET).to_json(), "data": evil}
    card = model_card(metadata, "mit", "name", background)
    code = re.search(r"^(`{4,})yaml\n(.*?)^\1$", card, re.M | re.S)
    assert yaml.safe_load(code[2])["note"] == evil
    rest = re.sub(r"`[^`\n]*`", "", card.replace(code[0], ""))
    assert "\n## License" not in rest and "<script>" not in rest


@pytest.mark.parametrize("name", ["samples.png", "README.md", "config.json"])
def test_files_of_something_else_are_refused_before_anything_is_drawn(run_dir, tmp_path, name):
    (tmp_path / name).write_bytes(b"of somebody")
    with pytest.raises(ValueError, match=f"must go to a new folder, .*{name} exists; give another"):
        export_model(run_dir, tmp_path, license="mit")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def export(*words):
    return CliRunner().invoke(main, ["export", *map(str, words)])


def test_a_picture_is_left_out_where_none_is_wanted_or_can_be_made(run_dir, tmp_path, monkeypatch):
    words = (run_dir, "--license", "mit")
    done = export(*words, "--samples", 0, "--out", tmp_path / "none")
    assert done.exit_code == 0 and not (tmp_path / "none/samples.png").exists()
    assert "samples.png" not in (tmp_path / "none/README.md").read_text()
    monkeypatch.setattr("edm2lite.sweep.publish._CPU_MACS", 1.0)
    done = export(*words, "--out", tmp_path / "long")
    assert done.exit_code == 0 and not (tmp_path / "long/samples.png").exists()
    assert "the card has no picture of samples: a CPU takes long" in done.stderr
    done = export(*words, "--samples", 3, "--out", tmp_path / "three")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "three/samples.png") as picture:
        assert picture.width == 2 * 68 + 4
