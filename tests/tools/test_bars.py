"""Progress bars of commands: totals, time left, and messages that do not land inside them."""

import logging
import re
import warnings

import click
from click.testing import CliRunner

from edm2lite.tools._cli import progress, user_errors
from edm2lite.tools.sweep_ema import main as sweep_ema


@click.command()
@user_errors
def working():
    with progress(total=3, desc="work", mininterval=0) as bar:
        for i in range(3):
            bar.update()
            if i == 1:
                logging.getLogger("edm2lite.somewhere").warning("seeds are few")
                with warnings.catch_warnings():
                    warnings.simplefilter("always")
                    warnings.warn("a library is old", DeprecationWarning, stacklevel=1)


def test_messages_get_lines_of_their_own_while_a_bar_is_drawn():
    done = CliRunner().invoke(working)
    assert done.exit_code == 0, done.output
    drawn = [line.rpartition("\r")[2] for line in done.stderr.split("\n")]
    assert "seeds are few" in drawn, "the bar was cleared before, and drawn again below"
    assert any(re.fullmatch(r"\S+: DeprecationWarning: a library is old", line) for line in drawn)
    assert "3/3" in drawn[-2]
    logging.getLogger("edm2lite.somewhere").warning("after the command")
    assert not [h for h in logging.root.handlers if "tqdm" in type(h).__name__.lower()]


def test_the_bar_of_a_sweep_knows_its_total_from_the_start_and_the_time_that_is_left(
    run_dir, tmp_path
):
    words = (run_dir, "--metric", "loss", "--data", "digits", "--sigma-rel", "0.1,0.2")
    words = (*words, "--num", 300, "--out", tmp_path)
    done = CliRunner().invoke(sweep_ema, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    drawn = [line for line in re.split(r"[\r\n]", done.stderr) if line.startswith("sweep")]
    counts = [re.search(r"(\d+)/(\d+) \[\d\d:\d\d<(\S+),", line) for line in drawn if "%" in line]
    assert counts and all(found and found[2] == "900" for found in counts), drawn
    assert counts[0][1] == "0" and counts[-1][1] == "900"  # two lengths and the raw weights
