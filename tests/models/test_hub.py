"""Exported models: what comes back, what the card says, and what an upload sends."""

import inspect
import json
import shutil
import sys
import types

import huggingface_hub
import pytest
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import HfApi

from edm2lite import load
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.ema import reconstruct, sigma_rel_to_gamma
from edm2lite.models.hub import from_pretrained, push_to_hub, save_pretrained
from edm2lite.models.model_card import model_card
from edm2lite.network.unet import UNetConfig
from edm2lite.tensorfile import load_tensors
from edm2lite.tools.edm2lite import main as edm2lite


def rows(card):
    """The two-column table of a card."""
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    return {cell[0]: cell[1].strip("`") for cell in cells if len(cell) == 2}


def test_an_exported_average_comes_back_with_all_it_knows(run_dir, tmp_path):
    name = f"{run_dir}@sigma_rel=0.13"
    folder = save_pretrained(name, tmp_path / "digits", license="apache-2.0")
    files = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files
    original, back = load(name), from_pretrained(folder)
    for key, value in original.net.state_dict().items():
        assert torch.equal(back.net.state_dict()[key], value), key
    assert back.encoder == original.encoder and back.identity == original.identity
    assert original.metadata.items() <= back.metadata.items()
    assert load(folder).identity == back.identity, "the folder is a model name too"
    again = save_pretrained(back, tmp_path / "again", license="mit", name="me/digits")
    assert load(again).metadata == back.metadata
    card = (again / "README.md").read_text()
    assert "license: mit" in card and "from_pretrained('me/digits')" in card


def test_the_card_states_length_time_error_coefficients_and_digests(run_dir, tmp_path):
    built = reconstruct(run_dir, sigma_rel=0.13, out=tmp_path / "ema")
    folder = save_pretrained(built.path, tmp_path / "digits", license="cc-by-nc-sa-4.0")
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-nc-sa-4.0" and front["library_name"] == "edm2lite"
    facts = rows(card)
    assert facts["EMA length (sigma_rel)"] == "0.13"
    assert float(facts["exponent (gamma)"]) == float(sigma_rel_to_gamma(0.13))
    assert facts["training images (nimg)"] == "1280"
    stated = float(facts["predicted error / norm of the weights"])
    assert stated == pytest.approx(built.predicted_error, rel=0.06)  # two digits are printed
    assert facts["xxh3-128 of the weights"] == load_tensors(built.path)[1]["digest"]
    inputs = sorted(json.loads(built.metadata["inputs"]), key=lambda i: -abs(i["coefficient"]))
    for entry in inputs[:12]:
        line = f"| `{entry['file']}` | `{entry['digest']}` | {entry['coefficient']:+.6f} |"
        assert line in card
    assert f"weighted sum of {len(inputs)} snapshots" in card and f"{built.sum_abs:.3f}" in card
    size = sum(p.numel() for p in load(folder).net.parameters())
    assert f"{size / 1e6:.3f} M parameters, 8 x 8 x 1, conditioned on 10 classes" in card


def test_raw_weights_and_half_precision_stay_what_they_are(run_dir, tmp_path):
    folder = save_pretrained(run_dir, tmp_path / "raw", license="mit")
    assert rows((folder / "README.md").read_text())["EMA length (sigma_rel)"] == "none"
    built = reconstruct(run_dir, gamma=7.0, out=tmp_path, dtype=torch.float16)
    folder = save_pretrained(built.path, tmp_path / "half", license="mit")
    assert load_tensors(folder / "model.safetensors")[0]["unet.out_gain"].dtype == torch.float16
    assert load(folder).metadata["digest"] == load(built.path).metadata["digest"]


def test_what_a_file_says_cannot_break_out_of_its_place_in_the_card():
    config = PrecondConfig(backbone=UNetConfig(img_resolution=8, img_channels=1, model_channels=64))
    evil = "a |\n---\nlicense: other\n`x`"
    metadata = {"model": config.to_json(), "run": evil, "source": evil, "encoder": evil}
    card = model_card(metadata, "mit", evil)
    assert yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["license"] == "mit"
    assert "\nlicense: other" not in card and rows(card)["run"] == "a / --- license: other 'x'"
    assert "unconditional" in card and rows(card)["EMA length (sigma_rel)"] == "not recorded"
    for inputs in ("{", "3", "[3]", '[{"file": "a"}]'):
        with pytest.raises(ValueError, match="inputs in the metadata must list files"):
            model_card(metadata | {"inputs": inputs}, "mit", "name")


class Hub:
    """The part of huggingface_hub that is used, without a network."""

    utils = types.SimpleNamespace(
        HfHubHTTPError=type("HfHubHTTPError", (RuntimeError, OSError), {})
    )

    def __init__(self, error=None):
        self.error, self.made, self.content = error, {}, None

    def api(self):
        return self

    HfApi = api

    def create_repo(self, repo_id, **options):
        self.made[repo_id] = options
        if self.error is not None:
            raise self.error

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert repo_id in self.made
        self.content = load(folder_path)
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def hf_hub_download(self, repo_id, filename, *, revision):
        if self.error is not None:
            raise self.error
        return f"{self.made[repo_id]}/{filename}"


def test_an_upload_sends_the_folder_and_reports_the_commit(run_dir):
    hub = Hub()
    url = push_to_hub(f"{run_dir}@sigma_rel=0.1", "me/digits", license="mit", private=True, hub=hub)
    assert url == "https://hub/me/digits/commit/1"
    assert hub.made == {"me/digits": {"private": True, "exist_ok": True}}
    assert hub.content.identity == load(f"{run_dir}@sigma_rel=0.1").identity


def install(monkeypatch, hub):
    """Stand in for the package, as if it were installed."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", hub.utils)


@pytest.mark.parametrize(
    "error", [OSError("no\ntoken"), ValueError("no\ntoken"), RuntimeError("no token")]
)
def test_what_the_hub_refuses_is_said_in_one_line(run_dir, tmp_path, monkeypatch, error):
    with pytest.raises(OSError, match="the Hub did not accept the model .no token.") as caught:
        push_to_hub(run_dir, "me/digits", license="mit", hub=Hub(error))
    assert "\n" not in str(caught.value)
    install(monkeypatch, Hub(error))
    with pytest.raises(FileNotFoundError, match="no folder me/digits, and the Hub .*: no token"):
        from_pretrained("me/digits")
    words = ("export", run_dir, "--out", tmp_path / "a", "--license", "mit", "--push", "me/d")
    result = CliRunner().invoke(edm2lite, [str(word) for word in words])
    assert result.exit_code == 1 and "did not accept the model (no token): me/d" in result.output


def test_an_export_is_pushed_again_after_an_upload_that_failed(run_dir, tmp_path, monkeypatch):
    def export(*words):
        begin = ("export", f"{run_dir}@sigma_rel=0.13", "--out", folder, "--push", "me/d")
        return CliRunner().invoke(edm2lite, [*map(str, begin), *words])

    folder = tmp_path / "a"
    install(monkeypatch, Hub(OSError("connection reset")))
    first = export("--license", "mit")
    assert first.exit_code == 1 and "connection reset" in first.output
    written = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    hub = Hub()
    install(monkeypatch, hub)
    again = export("--license", "mit")
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines() == [str(folder), "https://hub/me/d/commit/1"]
    assert hub.content.identity == load(folder).identity
    assert written == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert {path.name for path in folder.iterdir()} >= {"samples.png", "config.json"}
    other = export("--license", "apache-2.0")
    assert other.exit_code == 1 and "README.md exists and says something else" in other.output


def test_only_the_same_export_counts_as_there(run_dir, tmp_path):
    name, folder = f"{run_dir}@sigma_rel=0.13", tmp_path / "a"
    save_pretrained(name, folder, license="mit")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "README.md").unlink()  # as if the export had been interrupted
    save_pretrained(name, folder, license="mit")
    assert whole == {path.name: path.read_bytes() for path in folder.iterdir()}
    taken = "must go to a new folder, .*model.safetensors exists; give another"
    for other in (f"{run_dir}@sigma_rel=0.12", run_dir):
        with pytest.raises(ValueError, match=taken):
            save_pretrained(other, folder, license="mit")
    model = load(name)
    next(model.net.parameters()).data += 1
    with pytest.raises(ValueError, match=taken):
        save_pretrained(model, folder, license="mit")
    damaged = bytearray(whole["model.safetensors"])
    damaged[-1] ^= 1
    (folder / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=taken):
        save_pretrained(name, folder, license="mit")
    assert (folder / "model.safetensors").read_bytes() == damaged


def test_without_the_extra_a_push_is_refused_before_the_folder_is_written(
    run_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    words = ("export", run_dir, "--out", tmp_path / "a", "--license", "mit", "--push", "me/d")
    result = CliRunner().invoke(edm2lite, [str(word) for word in words])
    assert result.exit_code == 1 and not (tmp_path / "a").exists()
    assert result.output == "Error: the Hub needs huggingface_hub; pip install 'edm2lite[hub]'\n"


def test_a_repository_is_downloaded_and_loaded(run_dir, tmp_path, monkeypatch):
    hub = Hub()
    hub.made["me/digits"] = save_pretrained(run_dir, tmp_path / "cache", license="mit")
    install(monkeypatch, hub)
    assert from_pretrained("me/digits", revision="main").identity == load(run_dir).identity
    with pytest.raises(ValueError, match="revision must be left out for a folder"):
        from_pretrained(tmp_path / "cache", revision="main")


class Folder(Hub):
    """A Hub that is a folder of this machine; a call that the real package refuses is an error."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def create_repo(self, repo_id, **options):
        inspect.signature(HfApi.create_repo).bind(self, repo_id, **options)
        (self.path / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])

    def upload_folder(self, **words):
        inspect.signature(HfApi.upload_folder).bind(self, **words)
        shutil.copytree(words["folder_path"], self.path / words["repo_id"], dirs_exist_ok=True)
        return types.SimpleNamespace(commit_url=f"file://{self.path / words['repo_id']}")

    def hf_hub_download(self, repo_id, filename, **words):
        inspect.signature(huggingface_hub.hf_hub_download).bind(repo_id, filename, **words)
        return str(self.path / repo_id / filename)


def test_what_is_pushed_to_a_local_directory_comes_back(run_dir, tmp_path):
    hub, name = Folder(tmp_path / "hub"), f"{run_dir}@sigma_rel=0.13"
    url = push_to_hub(name, "me/digits", license="mit", hub=hub)
    assert url == f"file://{tmp_path}/hub/me/digits"
    original = load(name)
    for source in ("me/digits", tmp_path / "hub" / "me" / "digits"):
        back = from_pretrained(source, hub=hub)
        assert back.identity == original.identity
        for key, value in original.net.state_dict().items():
            assert torch.equal(back.net.state_dict()[key], value), key
    card = (tmp_path / "hub" / "me" / "digits" / "README.md").read_text()
    assert "from_pretrained('me/digits')" in card and "license: mit" in card
    push_to_hub(name, "me/digits", license="apache-2.0", hub=hub)  # a second commit replaces both
    card = (tmp_path / "hub" / "me" / "digits" / "README.md").read_text()
    assert "license: apache-2.0" in card


def test_without_the_extra_only_the_hub_itself_is_missing(run_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert from_pretrained(save_pretrained(run_dir, tmp_path, license="mit"))
    for call in (
        lambda: from_pretrained("me/x"),
        lambda: push_to_hub(run_dir, "me/x", license="mit"),
    ):
        with pytest.raises(ImportError, match=r"edm2lite\[hub\]"):
            call()


def test_the_command_writes_a_folder_that_generates(run_dir, tmp_path):
    def run(*words):
        return CliRunner().invoke(edm2lite, [str(word) for word in words])

    name, folder = f"{run_dir}@sigma_rel=0.1", tmp_path / "digits"
    result = run("export", name, "--license", "mit", "--out", folder)
    assert result.exit_code == 0 and result.stdout.strip() == str(folder), result.output
    images = tmp_path / "images"
    result = run("generate", folder, name, "--seeds", "0-1", "--steps", 2, "--out", images)
    assert result.exit_code == 0, result.output
    first, second = (
        sorted((images / model).glob("**/*.png")) for model in ("digits", "sigma_rel=0.1")
    )
    assert len(first) == len(second) == 2
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    for license, nearest in (("banana", "ncsa"), ("apache", "apache-2.0"), ("gpl-", "gpl-2.0")):
        said = run("export", name, "--license", license, "--out", tmp_path / "other").output
        begin = f"Error: license must be one that the Hub knows, got '{license}'; the nearest "
        assert said.startswith(begin) and nearest in said and said.count("\n") == 1
        assert not list((tmp_path / "other").glob("*"))
    before = (folder / "README.md").read_bytes()
    (folder / "model.safetensors").unlink()
    taken = run("export", name, "--license", "mit", "--out", folder)
    assert "README.md exists" in taken.output and (folder / "README.md").read_bytes() == before
    assert not (folder / "model.safetensors").exists()
    assert "license must be given" in run("export", name, "--out", folder).output
    older = run("export", name, "--licence", "mit", "--out", tmp_path / "older")
    assert older.exit_code == 0 and (tmp_path / "older" / "README.md").is_file()
    assert "--licence" not in run("export", "--help").output
    assert "no model at" in run("export", "nowhere", "--license", "mit", "--out", "x").output
    assert run("export", name, "--license", "mit", "--out", folder, "--private").exit_code == 2
