"""Solvers and schedules by name: ours from one list, those of a user as module:function."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sampling.generating import fail, files, images, raw, save_net, succeed

from edm2lite.dtypes import DTYPES
from edm2lite.sampling import Sampling, euler, karras_sigmas
from edm2lite.sampling.registry import SCHEDULES, SOLVERS
from edm2lite.sampling.solvers import Solver

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
MINE = """
    import torch
    from edm2lite.sampling import Solver, State, each_step

    def euler(denoise, x, sigmas):
        for denoise_i, sigma, sigma_next in each_step(denoise, sigmas):
            D_x = denoise_i(x, sigma)
            x = D_x + sigma_next / sigma * (x - D_x)
        return x

    def states(denoise, x, sigmas):
        for i, (denoise_i, sigma, sigma_next) in enumerate(each_step(denoise, sigmas)):
            D_x = denoise_i(x, sigma)
            x = D_x + sigma_next / sigma * (x - D_x)
            yield State(i, sigma_next, x, D_x)

    def halves(num_steps, sigma_min, sigma_max):
        return torch.tensor([sigma_max * 0.5**i for i in range(num_steps)])

    def add_noise(denoise, x, sigmas, noise, S_churn):
        return x + S_churn * noise()

    noisy = Solver(add_noise, options=("S_churn",), draws_noise=True)
    ordered = Solver(euler, options=("order",))

    def flat(denoise, x, sigmas):
        return x.flatten()
"""


@pytest.fixture(autouse=True)
def _module_of_a_user(tmp_path, monkeypatch):
    (tmp_path / "solvers_of_a_user.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "solvers_of_a_user", raising=False)


def mine(name):
    return f"solvers_of_a_user:{name}"


@pytest.mark.parametrize("name", ["euler", "states"])
def test_a_solver_of_a_user_gives_its_images(names, name):
    model, guide = raw(names[0]), raw(names[1])
    common = {"num_steps": 4, "guidance": 2.0, "interval": (1, 2)}
    expected = images(model, [3, 5], sampling=Sampling(solver="euler", **common), guide=guide)
    got = images(model, [3, 5], sampling=Sampling(solver=mine(name), **common), guide=guide)
    assert torch.equal(got, expected)


def test_the_command_takes_a_solver_and_a_schedule_of_a_user(tmp_path):
    net = save_net(tmp_path / "net.safetensors")
    common = ("--seeds", "0-1", "--steps", 4, "--class", 3)
    succeed(net, *common, "--solver", mine("euler"), "--out", tmp_path / "a")
    succeed(net, *common, "--solver", "euler", "--out", tmp_path / "b")
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["solver"] == mine("euler")
    pictures = [
        {name: data for name, data in files(tmp_path / folder).items() if name.endswith(".png")}
        for folder in "ab"
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2
    succeed(net, *common, "--schedule", mine("halves"), "--out", tmp_path / "c")
    succeed(net, *common[:2], *common[4:], "--sigmas", "80,40,20,10", "--out", tmp_path / "d")
    same = [(tmp_path / folder / "000000/000001.png").read_bytes() for folder in "cd"]
    assert same[0] == same[1]


def test_choices_that_do_not_exist_are_one_line(tmp_path):
    net = save_net(tmp_path / "net.safetensors")
    out = ("--seeds", 0, "--out", tmp_path / "a")
    line = fail(net, "--solver", "heunn", *out, code=2)
    assert "one of heun, dpmpp_2m, euler, ancestral, or module:name" in line
    assert "one of karras, linear, cosine" in fail(net, "--schedule", "x", *out, code=2)
    assert "PYTHONPATH" in fail(net, "--solver", "no_such_module:solver", *out)
    assert "has no no_such" in fail(net, "--solver", mine("no_such"), *out)
    line = fail(net, "--solver", mine("flat"), *out)
    assert "must return x of shape [64, 1, 8, 8], got [4096]" in line
    assert not (tmp_path / "a" / "000000").exists()


def test_levels_of_a_schedule_of_a_user_end_in_0_and_must_decrease():
    sampling = Sampling(schedule=mine("halves"), num_steps=3, sigma_max=8)
    assert sampling.levels().tolist() == [8, 4, 2, 0]
    assert sampling.changes()["schedule"] == mine("halves")
    with pytest.raises(ValueError, match="must decrease"):
        Sampling(schedule=mine("halves"), sigma_max=-1.0)


def test_options_are_those_that_a_solver_declares():
    sampling = Sampling(solver=mine("noisy"), S_churn=3.0)
    x = torch.zeros(2, 1, 1, 1)
    assert sampling.solve(lambda x, sigma: x, x, lambda: torch.ones(2, 1, 1, 1)).sum() == 6
    with pytest.raises(ValueError, match=r"noisy takes no S_noise, got 0\.5"):
        Sampling(solver=mine("noisy"), S_noise=0.5)
    with pytest.raises(ValueError, match="dpmpp_2m takes no S_churn"):
        Sampling(solver="dpmpp_2m", S_churn=1.0)
    with pytest.raises(ValueError, match=r"S_noise, got order; bind others with functools.partial"):
        Sampling(solver=mine("ordered"))


def test_a_solver_needs_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        euler(lambda x, sigma: x, torch.ones(1), torch.tensor([1.0]))


def test_every_name_leads_to_a_solver_or_to_levels():
    assert all(isinstance(SOLVERS.find(name), Solver) for name in SOLVERS)
    for name in SCHEDULES:
        levels = SCHEDULES.find(name)(4, 0.002, 80.0)
        assert len(levels) == 5 and levels[4] == 0
        if not name.startswith("trailing"):  # these take DDPM's levels in between
            assert levels[[0, 3]].tolist() == pytest.approx([80, 0.002])
    assert torch.equal(Sampling(num_steps=5).levels(), karras_sigmas(5))


def test_the_page_and_the_command_list_the_same_solvers_schedules_and_dtypes():
    """The help is printed without torch, which takes seconds to load."""
    code = "import sys\nfrom edm2lite.tools import generate\ntry: generate.main(['--help'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert f"--solver {'|'.join(SOLVERS)}|MODULE:NAME" in text
    assert f"--schedule {'|'.join(SCHEDULES)}|MODULE:NAME" in text
    assert f"--dtype [{'|'.join(DTYPES)}]" in text
    page = PAGE.read_text(encoding="utf-8")
    tables = dict(re.findall(r"^\| `--(solver|schedule)` .*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M))
    for option, kinds in (("solver", SOLVERS), ("schedule", SCHEDULES)):
        listed = re.findall(r"^\| `(\w+)`", tables[option], re.M)
        assert listed == list(kinds)
