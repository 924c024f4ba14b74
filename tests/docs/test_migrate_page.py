"""What docs/migrate.md shows runs as written: before, after, and both end with the same weights."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edm2lite.ema import PowerFunction, gamma_to_sigma_rel
from edm2lite.ema.formulas import decay_to_half_life
from edm2lite.sampling.recipes import RECIPES
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.generate import main as generate
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema
from edm2lite.training.__main__ import main as training

TEXT = (Path(__file__).parents[2] / "docs/migrate.md").read_text(encoding="utf-8")


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M)[1]


def blocks(title):
    """Functions that run the Python of a section, each after what all examples share."""
    shared, *_ = re.findall(r"```python\n(.*?)```", TEXT, re.S)

    def runner(code):
        def run():
            names = {}
            exec(compile(shared, "docs/migrate.md", "exec"), names)
            exec(compile(code, "docs/migrate.md", "exec"), names)
            return names

        return run

    return [runner(code) for code in re.findall(r"```python\n(.*?)```", section(title), re.S)]


def distance(a, b):
    """L2, relative; of state dicts."""
    a, b = (torch.cat([v.double().flatten() for v in s.values()]) for s in (a, b))
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_run_gives_the_average_of_torch_and_others(capsys):
    before, after = blocks("torch.optim.swa_utils")
    before()
    averaged = torch.load("ema.pt", weights_only=True)
    names = after()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("Exponential(") and second.startswith("Window(")
    assert third.startswith("PowerFunction(")
    rebuilt = [*names["reconstruct"]("runs/swa", profiles=[names["same"]])]
    error = distance(rebuilt[0].state_dict, averaged)
    other = names["Exponential"].of_decay(0.978, 32, 32 * 600)
    (wrong,) = names["reconstruct"]("runs/swa", profiles=[other])
    assert error < 5 * rebuilt[0].predicted_error < 1e-3  # of 21 numbers: it scatters
    assert distance(wrong.state_dict, averaged) > 20 * error  # a length that is off by a tenth


def test_what_diffusers_averages_is_a_power_function():
    pytest.importorskip("diffusers", reason="pip install 'edm2lite[test]'")
    before, after = blocks("diffusers")
    theirs, ours = before(), after()
    error = distance(ours["model"].state_dict(), theirs["model"].state_dict())
    # k / (k + 9) is (1 - 1 / k)^9 to first order: at 600 updates the profiles differ by 1 %
    assert error < 3e-3
    longer = ours["reconstruct"]("runs/diffusers", gamma=7)
    assert distance(longer.state_dict, theirs["model"].state_dict()) > 2 * error


def test_the_decays_of_diffusers_make_the_power_function_that_the_page_names():
    from diffusers.training_utils import EMAModel

    ema = EMAModel([], decay=0.9999)
    kept = [ema.get_decay(k) for k in range(1, 20_001)]
    # share from before update n, of n = 20 000, against the profile of gamma = 8
    older = np.cumprod(kept[19_999::-1])[::-1]
    profile = PowerFunction(8.0, 20_000)
    np.testing.assert_allclose(older[1:], profile.cumulative(np.arange(1, 20_000)), atol=2e-3)
    assert f"{gamma_to_sigma_rel(8):.4f}" in TEXT


def test_folders_of_ema_pytorch_and_its_replacement_agree():
    pytest.importorskip("ema_pytorch", reason="pip install 'edm2lite[test]'")
    single, post_hoc, after = blocks("ema-pytorch")
    assert set(single()["weights"]) == {"weight", "bias"}
    theirs, ours = post_hoc()["weights"], after()["weights"]
    # theirs is stored in half precision, and its coefficients do not sum to 1 exactly
    assert distance(theirs, ours) < 5e-3
    (commands,) = re.findall(r"```sh\n(.*?)```", section("ema-pytorch"), re.S)
    for line in commands.splitlines():
        name, *words = shlex.split(line)
        command = {"edm2lite": edm2lite, "reconstruct_ema": reconstruct_ema}[name]
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, (line, result.output)
    from safetensors.torch import load_file

    (file,) = Path("runs/imported/ema").glob("ema-0.15*")
    assert distance(load_file(file), ours) < 5e-3


def test_the_half_life_of_ema_pytorch_is_the_one_that_the_page_states():
    from ema_pytorch import EMA

    ema = EMA(torch.nn.Linear(1, 1), beta=0.9999)
    half_life = decay_to_half_life(ema.beta, ema.update_every)
    stated = re.search(r"has a half-life of ([\d ]+)", section("ema-pytorch"))[1]
    assert half_life == pytest.approx(float(stated.replace(" ", "")), abs=5)


def test_commands_that_replace_those_of_edm2_take_the_options_that_the_page_gives_them():
    """Every option in the right-hand column is one of the command it is given to."""
    commands = {
        "python -m edm2lite.training": training,
        "reconstruct_ema": reconstruct_ema,
        "sweep_ema": sweep_ema,
    }
    for name in ("generate", "import", "evaluate", "dataset", "magnitudes"):
        commands[f"edm2lite {name}"] = edm2lite.get_command(None, name)
    found = set()
    for row in re.findall(r"^\| .* \| (.*) \|$", section("NVlabs/edm2"), re.M):
        for code in re.findall(r"`([^`]*)`", row):
            start = next((c for c in commands if code.startswith(c)), None)
            if start is None:
                continue
            command = commands[start]
            while hasattr(command, "commands") or hasattr(command, "get_command"):
                words = code.removeprefix(start).split()
                name = words[0] if words and words[0] in command.list_commands(None) else "score"
                command = command.get_command(None, name)
            known = {option for p in command.params for option in p.opts}
            used = set(re.findall(r"--[\w-]+", code))
            assert used <= known, (code, used - known)
            found.add(start)
    assert found == commands.keys()
    assert "edm2-img512-s-guid-dino" in RECIPES and generate.name
    known = {option for p in generate.params for option in p.opts}
    assert {"--guide", "--guidance", "--recipe", "--weights"} <= known
