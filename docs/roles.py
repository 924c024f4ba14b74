"""For the reference pages: ``:func:`name``` in a docstring becomes a link to that name."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([\w.]+)`")


class Roles(griffe.Extension):
    """Names are looked up as Python would, from where the docstring stands."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = ROLE.sub(lambda match: _link(obj, match[1]), text)


def _link(obj: griffe.Object, name: str) -> str:
    """A link if some page shows the name, and the name alone if not."""
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name  # written in full, and not imported where it is used
    return f'<autoref optional identifier="{path}">`{name}`</autoref>'
