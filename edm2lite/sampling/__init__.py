"""From noise to images: noise levels, solvers, guidance, and files of generated images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.sampling.edit import Edit as Edit
    from edm2lite.sampling.editing import Inpaint as Inpaint
    from edm2lite.sampling.generation import generate as generate
    from edm2lite.sampling.guidance import APG as APG
    from edm2lite.sampling.guidance import Conditioned as Conditioned
    from edm2lite.sampling.guidance import Guided as Guided
    from edm2lite.sampling.guidance import Mixed as Mixed
    from edm2lite.sampling.guidance import Rescale as Rescale
    from edm2lite.sampling.image_folder import ImageFolder as ImageFolder
    from edm2lite.sampling.image_set import Images as Images
    from edm2lite.sampling.images import ImageGenerator as ImageGenerator
    from edm2lite.sampling.levels import cosine_sigmas as cosine_sigmas
    from edm2lite.sampling.levels import first_state as first_state
    from edm2lite.sampling.levels import interval_steps as interval_steps
    from edm2lite.sampling.levels import karras_sigmas as karras_sigmas
    from edm2lite.sampling.levels import linear_sigmas as linear_sigmas
    from edm2lite.sampling.levels import sigmas_from as sigmas_from
    from edm2lite.sampling.levels import user_sigmas as user_sigmas
    from edm2lite.sampling.recipes import recipe as recipe
    from edm2lite.sampling.settings import Sampling as Sampling
    from edm2lite.sampling.solvers import Solver as Solver
    from edm2lite.sampling.solvers import State as State
    from edm2lite.sampling.solvers import dpmpp_2m as dpmpp_2m
    from edm2lite.sampling.solvers import dpmpp_2m_steps as dpmpp_2m_steps
    from edm2lite.sampling.solvers import each_step as each_step
    from edm2lite.sampling.solvers import euler as euler
    from edm2lite.sampling.solvers import euler_steps as euler_steps
    from edm2lite.sampling.solvers import heun as heun
    from edm2lite.sampling.solvers import heun_steps as heun_steps

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.sampling.edit": "Edit",
        "edm2lite.sampling.editing": "Inpaint",
        "edm2lite.sampling.generation": "generate",
        "edm2lite.sampling.guidance": "APG Conditioned Guided Mixed Rescale",
        "edm2lite.sampling.image_folder": "ImageFolder",
        "edm2lite.sampling.image_set": "Images",
        "edm2lite.sampling.images": "ImageGenerator",
        "edm2lite.sampling.levels": "cosine_sigmas first_state interval_steps karras_sigmas"
        " linear_sigmas sigmas_from user_sigmas",
        "edm2lite.sampling.recipes": "recipe",
        "edm2lite.sampling.settings": "Sampling",
        "edm2lite.sampling.solvers": "Solver State dpmpp_2m dpmpp_2m_steps each_step euler"
        " euler_steps heun heun_steps",
    },
)
