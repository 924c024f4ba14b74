"""What docs/data.md shows runs as written, in its order, and does what the page says."""

import re
import shlex
import shutil
from pathlib import Path

from click.testing import CliRunner
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.training.__main__ import main as training
from edm2lite.training.config import load_config
from PIL import Image

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = {"edm2lite": edm2lite, "reconstruct_ema": reconstruct_ema}


def call(words):
    if words[0] == "torchrun":  # its processes one after the other; the first waits for all
        size = int(words[2].removeprefix("--nproc_per_node="))
        assert words[3:5] == ["-m", "edm2lite.tools.edm2lite"]
        for rank in reversed(range(size)):
            environment = {"RANK": str(rank), "WORLD_SIZE": str(size)}
            result = CliRunner(env=environment).invoke(edm2lite, words[5:])
            if result.exit_code:
                break
        return result
    if words[:3] == ["python", "-m", "edm2lite.training"]:
        return CliRunner().invoke(training, words[3:])
    return CliRunner().invoke(COMMANDS[words[0]], words[1:])


def test_the_data_page_runs_from_photos_to_images(photos, vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    shutil.copytree(vae, "vae")
    (tmp_path / "photos.yaml").write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 12
    for line in lines:
        result = call(shlex.split(line))
        assert result.exit_code == 0, (line, result.output)
    assert len(list(tmp_path.glob("images/**/*.png"))) == 4
    for name in ("sheet.png", "decoded.png"):
        with Image.open(name) as sheet:
            assert sheet.width > 500
    assert load_config("runs/photos/config.yaml").encoder.vae == str((tmp_path / "vae").resolve())
    assert load_config("runs/photos-ar/config.yaml").data.buckets


def test_the_options_of_the_loader_are_those_that_exist():
    from edm2lite.training.data import DataConfig

    named = set(re.findall(r"`data\.(\w+)`", TEXT))
    assert named == set(DataConfig.__dataclass_fields__)
