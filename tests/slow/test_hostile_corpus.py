"""Hostile files, given to every command that reads their kind: one line, soon, and nothing runs."""

import contextlib
import resource
import signal

import pytest
from click.testing import CliRunner
from hostile_files import COMMANDS, corpus, weights_file, words

from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema
from edm2lite.training.__main__ import main as training

PROGRAMS = {
    "edm2lite": edm2lite, "reconstruct_ema": reconstruct_ema, "sweep_ema": sweep_ema,
    "training": training,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def files(place):
    return list(corpus(place))


@pytest.fixture(scope="module")
def weights(place):
    return weights_file(place)


def is_line(text):
    return "Error: " in text or "problem found" in text or "problems found" in text


@contextlib.contextmanager
def soon(what):
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{what} takes too long"))
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(COMMANDS.keys() - {"far model"}))
def test_hostile_files_are_one_line(kind, place, files, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(place / "statistics")  # where a module lies that a file names
    monkeypatch.syspath_prepend(place / "statistics")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before, kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, weights.read_bytes()
    wrong = []
    for i, path in enumerate(path for k, path in files if k == kind):
        for command in COMMANDS[kind]:
            program, arguments = words(command, path, tmp_path / str(i), weights)
            with soon(f"{command.format(path, out='', weights='')}"):
                result = CliRunner().invoke(PROGRAMS[program], arguments)
            last = result.output.strip().splitlines()[-1:]
            if not isinstance(result.exception, SystemExit | None):
                wrong.append((command, path.name, repr(result.exception)[:300]))
            elif result.exit_code not in (0, 1) or (result.exit_code and not is_line(last[0])):
                wrong.append((command, path.name, result.output[-300:]))
            assert not (place / "executed").exists(), (command, path)
            assert weights.is_file() and weights.read_bytes() == kept, (command, path)
    assert not wrong, "\n".join(map(str, wrong))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
