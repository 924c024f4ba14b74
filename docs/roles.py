"""For the reference pages: links for ``:func:`name```, and ``Example:`` as a section of its own."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)  # griffe knows the plural, and no other


class Roles(griffe.Extension):
    """Names are looked up as Python would, from where the docstring stands."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda match: _link(obj, match[1]), text)


def _link(obj: griffe.Object, name: str) -> str:
    """A link if some page shows the name, and the name alone if not."""
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name  # written in full, and not imported where it is used
    return f'<autoref optional identifier="{path}">`{name}`</autoref>'
