"""``edm2lite ema-units``: convert an EMA length to the units of other tools, and draw it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edm2lite.ema.formulas import decay as last_beta
from edm2lite.ema.lengths import MEASURES, Length, Measure
from edm2lite.extras import require
from edm2lite.messages.commands import Command
from edm2lite.units import format_amount

from ._cli import AMOUNT, AMOUNTS, DECAYS, FLOATS, table, user_errors

_LEFT = {0.01: "at 1%", 0.05: "at 5%", 0.1: "at 10%", 0.2: "at 20%"}
"""Times before the end of the run, and the columns of the learning rate that is left there."""
_PICTURE = click.Path(path_type=Path, dir_okay=False)


TOPICS = {
    "Averages": "sigma-rel gamma half-life decay window",
    "Decays of the learning rate": "cooldown anytime schedule-free schedule-free-c",
    "Training": "at batch",
    "Output": "by schedule plot json",
}


@click.command(cls=Command, topics=TOPICS)
@click.option(
    "--sigma-rel", type=FLOATS, default=[], help="EMA lengths (sigma_rel), e.g. 0.05,0.10."
)
@click.option("--gamma", type=FLOATS, default=[], help="Exponents (gamma), e.g. 6.94.")
@click.option("--half-life", type=AMOUNTS, default=[], help="Half-lives in images; they need --at.")
@click.option(
    "--decay", type=FLOATS, default=[], help="Decays per update; they need --at and --batch."
)
@click.option(
    "--window", type=AMOUNTS, default=[], help="Lengths of windows in images; they need --at."
)
@click.option("--cooldown", type=DECAYS, default=[], help="Decays of the rate, e.g. cosine:0.2.")
@click.option(
    "--anytime", type=FLOATS, default=[],
    help="Half-lives that grow with the run, as shares of the time so far, e.g. 0.0625.",
)  # fmt: skip
@click.option("--schedule-free", type=FLOATS, default=[], help="Exponents r of the weights t**r.")
@click.option(
    "--schedule-free-c",
    type=FLOATS,
    default=[],
    help="C (1 - beta1), for c_t = C (1 - beta1) / t.",
)
@click.option("--at", "nimg", type=AMOUNT, help="Training time: images so far, e.g. 64Mi.")
@click.option("--batch", type=AMOUNT, help="Images between two updates of the average.")
@click.option(
    "--by", type=click.Choice(MEASURES), default="width", show_default=True,
    help="Compare lengths by the standard deviation, the mean or the median of the age of weights.",
)  # fmt: skip
@click.option("--schedule", is_flag=True, help="Print the learning rate schedules they emulate.")
@click.option("--plot", type=_PICTURE, help="Draw profiles and emulated schedules into this PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with all digits.")
@user_errors
def main(
    sigma_rel: list[float],
    gamma: list[float],
    half_life: list[float],
    decay: list[float],
    window: list[float],
    cooldown: list[str],
    anytime: list[float],
    schedule_free: list[float],
    schedule_free_c: list[float],
    nimg: float | None,
    batch: float | None,
    by: Measure,
    schedule: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Convert EMA lengths between power functions, constant decays, windows and rate schedules.

    Half-life, decay and window are those of averages that are equally long by the measure --by.
    Without --at, lengths are fractions of the training time. Everything is counted in images, or in
    whatever --at and --batch count: with --batch 1, in updates. "last beta" is the decay of the
    power function in the update that ends at --at; "initial" is the share of the initial weights
    that the EMA of constant decay still holds.

    \b
    Example:
      edm2lite ema-units --sigma-rel 0.05,0.10 --at 64Mi --batch 2048
      edm2lite ema-units --decay 0.9999 --at 64Mi --batch 256 --plot profiles.png
    """
    if plot is not None:
        require("matplotlib")
    lengths = [Length.of_sigma_rel(value, by) for value in sigma_rel]
    lengths += [Length(value, by) for value in gamma]
    if half_life or decay or window:
        if nimg is None or (decay and batch is None):
            raise click.UsageError(
                "a half-life, decay or window depends on the training time: give --at"
                + (" and --batch" if decay else "")
            )
        lengths += [Length.of_half_life(value, nimg, by) for value in half_life]
        lengths += [Length.of_decay(value, nimg, batch or 0, by) for value in decay]
        lengths += [Length.of_window(value, nimg, by) for value in window]
    lengths += [Length.of_cooldown(value, nimg, by) for value in cooldown]
    lengths += [Length.of_anytime(value, by) for value in anytime]
    lengths += [Length.of_schedule_free(value + 1, by) for value in schedule_free]
    lengths += [Length.of_schedule_free(value, by) for value in schedule_free_c]
    if not lengths:
        raise click.UsageError(
            "give a length: --sigma-rel, --gamma, --half-life, --decay, --window, --cooldown,"
            " --anytime, --schedule-free or --schedule-free-c"
        )
    if nimg is None and batch is not None:
        raise click.UsageError("--batch needs --at: a decay depends on the training time")
    if nimg is not None and batch is not None and batch > nimg:
        raise ValueError(f"--batch must be at most --at, got {batch:g} and {nimg:g}")
    if as_json:
        click.echo(json.dumps([_record(one, nimg, batch) for one in lengths], indent=2))
    else:
        click.echo(_schedules(lengths) if schedule else _table(lengths, nimg, batch))
    if plot is not None:
        from edm2lite.plotting.lengths import plot_lengths

        plot_lengths(plot, lengths, nimg)
        click.echo(plot, err=True)


def _record(length: Length, nimg: float | None, batch: float | None) -> dict[str, Any]:
    """All numbers of a length, as fractions of the training time and in images at ``nimg``."""
    shares = {
        "half_life": length.half_life,
        "window": length.window,
        "mean_age": length.mean_age,
        "median_age": length.median_age,
    }
    record = {
        "sigma_rel": length.sigma_rel,
        "gamma": length.gamma,
        "by": length.by,
        **shares,
        "initial_share": length.initial_share,
        "halves_at": 1 - length.median_age,
        "budget": 1 - length.mean_age,
        "linear_decay": length.cooldown("linear"),
        "cosine_decay": length.cooldown("cosine"),
        "anytime": length.anytime,
        "schedule_free": length.gamma,
        "schedule_free_c": length.gamma + 1,
    }
    if nimg is not None:
        record |= {"nimg": nimg, **{f"{k}_nimg": share * nimg for k, share in shares.items()}}
    if nimg is not None and batch is not None:
        beta = float(last_beta(length.gamma, nimg, batch))
        record |= {"batch_size": batch, "decay": length.decay(nimg, batch), "last_beta": beta}
    return record


def _table(lengths: Sequence[Length], nimg: float | None, batch: float | None) -> str:
    columns = {"sigma_rel": ".4f", "gamma": ".3f", "half-life": ">", "window": ">"}
    columns |= {"mean age": ">", "median age": ">"}
    if batch is not None:
        columns |= {"decay": ">", "last beta": ">"}
    rows = []
    for length in lengths:
        record = _record(length, nimg, batch)
        shares = [record[k] for k in ("half_life", "window", "mean_age", "median_age")]
        row = [record["sigma_rel"], record["gamma"]]
        row += [f"{s:.2%}" if nimg is None else format_amount(s * nimg) for s in shares]
        if batch is not None:
            row += [_digits(record["decay"]), _digits(record["last_beta"])]
        rows.append([*row, f"{record['initial_share']:.1%}"])
    return table({**columns, "initial": ">"}, rows)


def _schedules(lengths: Sequence[Length]) -> str:
    """What each length does to the learning rate, in fractions of the run."""
    columns = {"sigma_rel": ".4f", "rate halves": ".1%", "budget": ".1%", "linear": ">"}
    columns |= {"cosine": ">", "1-sqrt": ">"} | dict.fromkeys(_LEFT.values(), ".3f")
    columns |= {"anytime": ".4f", "r": ".3f", "C(1-beta1)": ".3f"}
    rows = []
    for one in lengths:
        decays = [one.cooldown(shape) for shape in ("linear", "cosine", "1-sqrt")]
        row = [one.sigma_rel, 1 - one.median_age, 1 - one.mean_age]
        left = [1 - (1 - before) ** (one.gamma + 1) for before in _LEFT]
        shares = ["-" if share is None else f"{share:.1%}" for share in decays]
        rows.append([*row, *shares, *left, one.anytime, one.gamma, one.gamma + 1])
    return table(columns, rows)


def _digits(decay: float) -> str:
    """A decay with enough digits to show 1 - decay to four significant ones."""
    places = 4
    while places < 12 and 1 - decay < 0.9999 * 10 ** (3 - places):
        places += 1
    return f"{decay:.{places}f}"


if __name__ == "__main__":
    main()
