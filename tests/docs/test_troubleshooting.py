"""Messages that the page of troubles quotes are those that edm2lite gives."""

import re

import pytest
from pages import DOCS, ROOT

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    part.strip()
    for title in re.findall(r"^\*\*(`.+?`)\.?\*\*", PAGE, re.M)
    for message in re.findall(r"`([^`]+)`", title)
    for part in re.split(r"\.\.\.|\bN\b|\bRUN\b", message)
    if len(part.strip()) > 6
]
NOT_OURS = {  # of Python, of files, and with a name in the middle
    "ModuleNotFoundError: No module named 'edm2lite.training'",
    "needs torch-fidelity; pip install 'edm2lite[metrics]'",
    "digits must name one thing",
    "problems found in",
    ".images.zip.1a2b3c4d.partial",
    "waiting up to 60 s to see if",
}


@pytest.fixture(scope="module")
def source():
    """All source text, with strings that are continued on the next line joined."""
    files = [*ROOT.glob("edm2lite/**/*.py"), *ROOT.glob("training/*.py"), *ROOT.glob("tools/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_on_the_page_exists(source, message):
    assert (message in source) != (message in NOT_OURS)


def test_the_list_of_exceptions_has_nothing_that_is_no_longer_quoted():
    assert set(QUOTED) >= NOT_OURS and len(QUOTED) > 20
