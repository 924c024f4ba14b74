"""Licenses as the Hugging Face Hub names them: most by their SPDX identifier in lower case."""

from __future__ import annotations

import difflib

_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl
gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl
apple-ascl apple-amlr mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
gemma unknown other
"""

LICENSES = tuple(_NAMES.split())
"""The names that the Hub knows; ``other`` stands for every license that it does not know."""


def license_name(text: str) -> str:
    """A license by the name that the Hub has for it; capitals do not matter.

    Args:
        text: Name as a person or a file gives it.

    Raises:
        ValueError: If the Hub has no license of that name.

    Example:
        >>> license_name("Apache-2.0")
        'apache-2.0'
    """
    name = text.strip().lower()
    if name not in LICENSES:
        begins = [known for known in LICENSES if known.startswith(name)] if name else []
        near = (begins or difflib.get_close_matches(name, LICENSES, 3, 0))[:3]
        verb = "is" if len(near) == 1 else "are"
        raise ValueError(
            f"license must be one that the Hub knows, got {text!r}; the nearest {verb}"
            f" {', '.join(near)}, and other stands for a license of your own"
        )
    return name
