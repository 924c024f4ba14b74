"""The published ways to sample the released networks of EDM2 and DiT, by name.

``edm2-img512-s-autog-fid``: data set, size, kind of guidance, and the metric that EMA lengths and
weight were chosen for. Sources: arXiv 2312.02696, Tables 2 and 5 (no guidance; ``guid``: the
unconditional XS network as the guide); arXiv 2406.02507, Table 1 (``autog``); arXiv 2404.07724,
Table 1 (``guid-interval``, its intervals as steps of 32). These take 32 steps of Heun's method.

``dit-xl-2-256-cfg``: DiT-XL/2 by 250 steps of DDPM's sampler with the variance that the network
predicts, and classifier-free guidance of the first 3 of 4 channels (arXiv 2212.09748, Tables 2, 3).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from edm2lite.sampling.settings import Sampling

MI = 2**20
UNCONDITIONAL = "unconditional"
_DURATIONS = {
    "img512-xs": 2048, "img512-s": 2048, "img512-m": 2048, "img512-l": 1792, "img512-xl": 1280,
    "img512-xxl": 896, "img512-xs-uncond": 2048, "img512-s-uncond": 2048, "img64-s": 1024,
    "img64-m": 2048, "img64-l": 1024, "img64-xl": 640,
}  # fmt: skip
"""Training times in Mi images."""


@dataclass(frozen=True)
class Recipe:
    """A published way to sample released networks.

    Attributes:
        model: Name of the weights without their suffix, as they were released.
        guide: Name of the weights of the guide, or ``unconditional`` for the model without its
            conditions; None for no guidance.
        guidance: Weight of guidance, as in :class:`Sampling`.
        interval: First and last step that are guided, as in :class:`Sampling`.
        metric: Metric that EMA lengths and weight were chosen for: ``fid`` or ``dino``.
        value: Value of the metric that its authors report.
        ancestral_steps: Number of steps of DDPM's sampler, in place of Heun's method.
        guided_channels: Number of channels that are guided, as in :class:`Sampling`.
    """

    model: str
    guide: str | None
    guidance: float
    interval: tuple[int, int] | None
    metric: str
    value: float
    ancestral_steps: int | None = None
    guided_channels: int | None = None

    @property
    def sampling(self) -> Sampling:
        """The sampler settings."""
        guidance, interval = self.guidance, self.interval
        if self.ancestral_steps is None:
            return Sampling(guidance=guidance, interval=interval)
        from edm2lite.sampling.ancestral import respaced_sigmas

        return Sampling(
            solver="ancestral", sigmas=tuple(respaced_sigmas(self.ancestral_steps).tolist()),
            guidance=guidance, interval=interval, guided_channels=self.guided_channels,
        )  # fmt: skip

    def find(self, folder: Path) -> tuple[Path, Path | str | None]:
        """The files of model and guide; the guide may be ``unconditional``.

        Args:
            folder: Folder with the converted weights, under their released names.

        Raises:
            FileNotFoundError: If one of them is not in ``folder``.
        """
        own = self.guide == UNCONDITIONAL
        names = [self.model] if own or self.guide is None else [self.model, self.guide]
        paths = [folder / f"{name}.safetensors" for name in names]
        missing = [path.stem for path in paths if not path.is_file()]
        if missing:
            suffix = "pkl" if missing[0].startswith("edm2") else "pt"
            files = " and ".join(f"{name}.safetensors" for name in missing)
            raise FileNotFoundError(
                f"{folder} must hold {files}; convert the released files by"
                f" `edm2lite import {missing[0]}.{suffix}`"
            )
        return paths[0], self.guide if own else paths[1] if self.guide else None


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: If there is none; similar names are in the message.

    Example:
        >>> best = recipe("edm2-img512-s-guid-interval-fid")
        >>> best.model, best.guidance, best.interval
        ('edm2-img512-s-2147483-0.025', 2.1, (15, 21))
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3)
        meant = f"the nearest are {', '.join(near)}, and " if near else ""
        raise ValueError(
            f"there is no recipe {name!r}; {meant}edm2lite generate --list-recipes prints all"
        )
    return RECIPES[name]


def _weights(net: str, sigma_rel: float, mi: int | None = None) -> str:
    """The name of released weights: network, thousands of training images, EMA length."""
    nimg = (_DURATIONS[net] if mi is None else mi) * MI
    return f"edm2-{net}-{nimg // 1000:07d}-{sigma_rel:.3f}"


def _without_guidance() -> dict[str, Recipe]:
    table = {  # FID and its sigma_rel, FD-DINOv2 and its sigma_rel
        "img512-xs": ((3.53, 0.135), (103.39, 0.200)),
        "img512-s": ((2.56, 0.130), (68.64, 0.190)),
        "img512-m": ((2.25, 0.100), (58.44, 0.155)),
        "img512-l": ((2.06, 0.085), (52.25, 0.155)),
        "img512-xl": ((1.96, 0.085), (45.96, 0.155)),
        "img512-xxl": ((1.91, 0.070), (42.84, 0.150)),
        "img512-s-uncond": ((11.67, 0.145), (209.53, 0.170)),
        "img64-s": ((1.58, 0.075), (58.52, 0.160)),
        "img64-m": ((1.43, 0.060), None),
        "img64-l": ((1.33, 0.040), None),
        "img64-xl": ((1.33, 0.040), None),
    }
    out = {}
    for net, (fid, dino) in table.items():
        for metric, entry in (("fid", fid), ("dino", dino)):
            if entry is not None:
                model = _weights(net, entry[1])
                out[f"edm2-{net}-{metric}"] = Recipe(model, None, 1.0, None, metric, entry[0])
    return out


def _unconditional_guide() -> dict[str, Recipe]:
    table = {  # value, sigma_rel of both, weight, steps: for FID, then for FD-DINOv2
        "img512-xs-guid": ((2.91, 0.045, 1.4, None), (79.94, 0.150, 1.7, None)),
        "img512-s-guid": ((2.23, 0.025, 1.4, None), (52.32, 0.085, 1.9, None)),
        "img512-m-guid": ((2.01, 0.030, 1.2, None), (41.98, 0.015, 2.0, None)),
        "img512-l-guid": ((1.88, 0.015, 1.2, None), (38.20, 0.035, 1.7, None)),
        "img512-xl-guid": ((1.85, 0.020, 1.2, None), (35.67, 0.030, 1.7, None)),
        "img512-xxl-guid": ((1.81, 0.015, 1.2, None), (33.09, 0.015, 1.7, None)),
        "img512-s-guid-interval": ((1.68, 0.025, 2.1, (15, 21)), (46.25, 0.085, 3.2, (13, 19))),
        "img512-xxl-guid-interval": ((1.40, 0.015, 2.0, (17, 22)), (29.16, 0.015, 2.9, (13, 19))),
    }
    out = {}
    for name, entries in table.items():
        net = name.partition("-guid")[0]
        for metric, (value, length, weight, steps) in zip(("fid", "dino"), entries, strict=True):
            model, guide = _weights(net, length), _weights("img512-xs-uncond", length)
            out[f"edm2-{name}-{metric}"] = Recipe(model, guide, weight, steps, metric, value)
    return out


def _autoguidance() -> dict[str, Recipe]:
    table = {  # guide, its time in Mi; value, weight, sigma_rel of main and guide, twice
        "img512-s": ("img512-xs", 128, (1.34, 2.10, 0.070, 0.125), (36.67, 2.45, 0.120, 0.165)),
        "img512-xxl": ("img512-m", 256, (1.25, 2.05, 0.075, 0.155), (24.18, 2.30, 0.130, 0.205)),
        "img512-s-uncond": (
            "img512-xs-uncond", 128, (3.86, 2.85, 0.070, 0.110), (90.39, 2.90, 0.090, 0.125)
        ),
        "img64-s": ("img64-xs", 128, (1.01, 1.70, 0.045, 0.110), (31.85, 2.20, 0.105, 0.175)),
    }  # fmt: skip
    out = {}
    for net, (weaker, mi, *entries) in table.items():
        for metric, (value, weight, *lengths) in zip(("fid", "dino"), entries, strict=True):
            model, guide = _weights(net, lengths[0]), _weights(weaker, lengths[1], mi)
            out[f"edm2-{net}-autog-{metric}"] = Recipe(model, guide, weight, None, metric, value)
    return out


def _dit() -> dict[str, Recipe]:
    return {
        f"dit-xl-2-{pixels}-cfg": Recipe(
            f"DiT-XL-2-{pixels}x{pixels}", UNCONDITIONAL, 1.5, None, "fid", fid,
            ancestral_steps=250, guided_channels=3,
        )
        for pixels, fid in ((256, 2.27), (512, 3.04))
    }  # fmt: skip


RECIPES: dict[str, Recipe] = {
    **_without_guidance(), **_unconditional_guide(), **_autoguidance(), **_dit()
}  # fmt: skip
