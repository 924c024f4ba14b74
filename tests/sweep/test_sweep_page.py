"""The page of a sweep in a browser: slider, keys and a tap move the mark and change the images."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from edm2lite.sweep import Cell, Point
from edm2lite.sweep.page import write_page

LENGTHS = [0.02, 0.05, 0.1, 0.2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

DRIVE = """
<script>
const seen = [];
const look = what => seen.push([what, place.join(","), byId("now").textContent,
  byId("samples").src.length ? data.points.findIndex(p => p.image === byId("samples").src) : -1,
  byId("mark") ? Math.round(byId("mark").getAttribute("cx")) : -1]);
look("start");
const slider = byId("slider0");
slider.value = 0; slider.dispatchEvent(new Event("input")); look("slider");
document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })); look("key");
const box = byId("curve").getBoundingClientRect();
byId("curve").dispatchEvent(new MouseEvent("click", { clientX: box.right - 20 })); look("tap");
document.title = "wide " + (document.documentElement.scrollWidth <= window.innerWidth);
byId("hint").textContent = JSON.stringify(seen);
</script>
"""


@pytest.fixture
def page(tmp_path):
    values = [3.0, 2.0, 1.5, 2.5]
    points = [
        Point(s, 1024, value=v, low=v - 0.2, high=v + 0.2, num=100)
        for s, v in zip(LENGTHS, values, strict=True)
    ]
    rng = np.random.default_rng(0)
    images = {Cell(s, 1024): rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8) for s in LENGTHS}
    path = tmp_path / "sweep.html"
    write_page(
        path, points, images, metric="fd", verdict="Best </script> 10 %.", protocol="100 images"
    )
    return path


def test_page_holds_everything_itself(page):
    text = page.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"<(link|script|img)[^>]*(src|href)=", text)
    assert text.count("</script>") == 2  # what a verdict says does not end the data
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["axes"][0]["values"] == LENGTHS and data["best"] == [2]
    assert len({point["image"] for point in data["points"]}) == 4


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 600])
def test_page_works_in_a_browser(page, width):
    page.write_text(page.read_text().replace("</body>", DRIVE + "</body>"))
    shown = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    seen = json.loads(re.search(r'id="hint">(.*?)</p>', shown, re.S)[1])
    assert "<title>wide true</title>" in shown  # nothing sticks out, also on a phone
    where = {what: (place, image) for what, place, _, image, _ in seen}
    assert where == {"start": ("2", 2), "slider": ("0", 0), "key": ("1", 1), "tap": ("3", 3)}
    texts = [text for _, _, text, _, _ in seen]
    assert texts[0] == "FD 1.500 (1.300 to 1.700), the best"
    assert texts[1] == "FD 3.000 (2.800 to 3.200)"
    marks = [mark for *_, mark in seen]
    assert marks[1] < marks[2] < marks[0] < marks[3]
