"""Playing with a trained run: averages of any length at once, images from them, and its sweep.

What the page of ``edm2lite play`` shows is decided here, without the page: :class:`Session`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.play.session import Session as Session
    from edm2lite.play.settings import Fields as Fields
    from edm2lite.play.settings import Settings as Settings

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.play.session": "Session",
        "edm2lite.play.settings": "Fields Settings",
    },
)
