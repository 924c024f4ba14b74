"""The page of a sweep in a browser: slider, keys and a tap move the mark and change the images."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from edm2lite.metrics.interval import Verdict
from edm2lite.sweep import Cell, Point
from edm2lite.sweep.page import PageTexts, write_page

LENGTHS = [0.02, 0.05, 0.1, 0.2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
HOSTILE = "Best </script> <img src=x onerror=alert(1)> 10 %."

DRIVE = """
<script>
const seen = [];
const at = selector => document.querySelectorAll(selector).length;
const look = what => seen.push({ what, place: place.join(","), text: byId("now").textContent,
  image: data.points.findIndex(p => p.image === byId("samples").src),
  mark: Math.round(byId("mark").getAttribute("cx")),
  command: byId("chosen").querySelector("code").textContent,
  pictures: [...document.querySelectorAll("figcaption")].map(c => c.textContent) });
const press = key => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
const pointer = (target, x, y) => target.dispatchEvent(
  new PointerEvent("pointermove", { clientX: x, clientY: y, bubbles: true }));
look("start");
const slider = byId("slider0");
slider.value = 0; slider.dispatchEvent(new Event("input")); look("slider");
press("ArrowRight"); look("key");
press("c"); press("ArrowRight"); look("pair");
const sheets = document.querySelectorAll("img"), tile = sheets[1].getBoundingClientRect();
pointer(sheets[1], tile.left + 1.5 * tile.width / data.tiles.columns, tile.top + 1);
const hint = byId("tile").textContent, marks = at(".mark[style*=block]");
press("c"); look("alone");
const box = byId("curve").getBoundingClientRect();
byId("curve").dispatchEvent(new MouseEvent("click", { clientX: box.right - 20 })); look("tap");
pointer(byId("curve"), box.left + sx(2), box.top + 50);
byId("hint").textContent = JSON.stringify({
  seen, hint, marks,
  pointer: byId("pointer").textContent,
  font: parseFloat(getComputedStyle(document.querySelector("svg text")).fontSize) * box.width / W,
  x: [...document.querySelectorAll(".xtick")].map(t => t.textContent),
  y: [...document.querySelectorAll(".ytick")].map(t => t.textContent),
  titles: [byId("xtitle").textContent, byId("ytitle").textContent],
  alike: at("circle.alike"), optimum: at("#optimum"), raw: at("#raw"),
  again: byId("again").querySelector("code").textContent,
  wide: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
  width: document.documentElement.clientWidth,
  named: [...document.querySelectorAll(".heads span, .rows span")].map(s => s.textContent),
});
</script>
"""


def points(raw=()):
    values = [3.0, 2.0, 1.5, 2.5]
    lengths = [*([None] if raw else []), *LENGTHS]
    return [
        Point(s, 1024, value=v, low=v - 0.2, high=v + 0.2, num=100)
        for s, v in zip(lengths, [*raw, *values], strict=True)
    ]


def written(tmp_path, rows, titles=()):
    rng = np.random.default_rng(0)
    images = {p.cell: rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8) for p in rows}
    texts = PageTexts(
        verdict=HOSTILE,
        protocol="100 images",
        run="runs & <b>",
        command="edm2lite sweep runs/a --sigma-rel 0.02,0.05,0.1,0.2",
        commands={p.cell: f"edm2lite generate runs/a@sigma_rel={p.sigma_rel}" for p in rows},
        titles=titles,
    )
    path = tmp_path / "sweep.html"
    write_page(
        path, rows, images, metric="fd", texts=texts, equal=[rows[-2], rows[-1]], first_seed=7,
        optimum=Verdict(2, 0.09, 0.07, 0.12, False, False, (2, 3)),
    )  # fmt: skip
    return path, images


def content(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


def opened(path, width):
    """What a browser shows of the page in a frame of a width; windows have a smallest width."""
    page = path.read_text().replace("</body>", DRIVE + "</body>")
    path.write_text(page)
    frame = path.with_name("frame.html")
    frame.write_text(
        f'<iframe id="frame" src="{path.name}" width="{width}" height="3000" style="border:0">'
        '</iframe><pre id="out"></pre><script>frame.onload = () => { out.textContent ='
        ' frame.contentDocument.getElementById("hint").textContent; }</script>'
    )
    shown = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--allow-file-access-from-files", "--window-size=1300,1000", "--virtual-time-budget=2000",
         "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', shown, re.S)[1]))


def test_page_holds_everything_itself(tmp_path):
    path, _ = written(tmp_path, points())
    text = path.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"<(link|script|img)[^>]*(src|href)=", text.partition('id="data">')[0])
    assert "default-src 'none'" in text, "the browser is told to fetch nothing"
    assert "innerHTML" not in text
    assert text.count("</script>") == 2  # what a verdict says does not end the data
    data = content(path)
    assert data["axes"][0]["values"] == LENGTHS and data["best"] == [2]
    assert [p["alike"] for p in data["points"]] == [False, False, True, True]
    assert data["optimum"] == [0.07, 0.12] and data["tiles"]["seeds"][0] == 7


def tiles_of(path, point=0):
    """The images of a point, read from the page: [rows, columns, H, W], and their seeds."""
    data = content(path)
    picture = data["points"][point]["image"].partition(",")[2]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    columns, seeds = data["tiles"]["columns"], data["tiles"]["seeds"]
    step = (pixels.shape[1] - 3) // columns  # 8 x 8 pixels are enlarged 6 times, with gaps of 3
    found = []
    for i in range(len(seeds)):
        y, x = 3 + step * (i // columns), 3 + step * (i % columns)
        found.append(pixels[y : y + 48 : 6, x : x + 48 : 6])
    return found, seeds


@pytest.mark.parametrize(
    "titles, rows, heads, columns",
    [
        (["Flags", "Food & Drink"] * 10, ["Flags", "Food & Drink"], [], 10),
        ([f"class {i % 10}" for i in range(20)], [], [str(i) for i in range(10)], 10),
        ([f"heart {i}" for i in range(20)], [], [], 10),
        (["cat", "dog", "emu"] * 6 + ["cat", "dog"], ["cat", "dog", "emu"], [], 6),
        ((), [], [], 10),
    ],
)
def test_images_lie_beside_the_names_of_what_they_show(tmp_path, titles, rows, heads, columns):
    path, images = written(tmp_path, points(), titles)
    tiles = content(path)["tiles"]
    assert (tiles["rows"], tiles["heads"], tiles["columns"]) == (rows, heads, columns)
    shown, seeds = tiles_of(path)
    assert len(set(seeds)) == len(seeds) and {*seeds} <= {*range(7, 27)}
    for place, (image, seed) in enumerate(zip(shown, seeds, strict=True)):
        assert np.array_equal(image, images[Cell(0.02, 1024)][seed - 7][0])
        if titles:
            assert tiles["titles"][place] == titles[seed - 7]
        if rows:
            assert titles[seed - 7] == rows[place // columns]
        if heads:
            assert titles[seed - 7] == f"class {heads[place % columns]}"


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_page_works_in_a_browser(tmp_path, width):
    titles = ["Flags", "Food"] * 10
    path, _ = written(tmp_path, points(raw=[4.0]), titles)
    shown = opened(path, width)
    assert shown["wide"] and shown["width"] == width  # nothing sticks out, also on a phone
    assert shown["font"] >= 12.5  # pixels, whatever the width
    looks = {look["what"]: look for look in shown["seen"]}
    places = {what: (look["place"], look["image"]) for what, look in looks.items()}
    assert places == {
        "start": ("3", 3), "slider": ("0", 0), "key": ("1", 1), "pair": ("2", 2),
        "alone": ("2", 2), "tap": ("4", 4),
    }  # fmt: skip
    assert looks["start"]["text"] == "FD 1.500 (1.300 to 1.700), the best"
    assert looks["slider"]["text"] == "FD 4.000 (3.800 to 4.200)"
    assert looks["tap"]["text"].endswith(", cannot be told apart from the best")
    assert looks["start"]["command"] == "edm2lite generate runs/a@sigma_rel=0.1"
    assert looks["tap"]["command"].endswith("@sigma_rel=0.2")
    assert looks["pair"]["pictures"] == [
        "EMA length 2 %: FD 3.000 (2.800 to 3.200)", "EMA length 5 %: FD 2.000 (1.800 to 2.200)",
    ]  # fmt: skip
    assert [len(look["pictures"]) for look in shown["seen"]] == [1, 1, 1, 2, 1, 1]
    assert looks["slider"]["pictures"][0].startswith("raw weights: ")
    marks = [looks[what]["mark"] for what in ("slider", "key", "alone", "start", "tap")]
    assert marks == sorted(marks) and marks[-1] < width
    assert shown["hint"] == "seed 9: Flags" and shown["marks"] == 2  # the same tile in both
    assert shown["pointer"] == "5 %: FD 2.000 (1.800 to 2.200)"
    assert shown["titles"][0] == "EMA length, % of training time"
    assert shown["titles"][1] == "Fréchet distance (lower is better)"
    assert shown["y"] == ["1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]
    assert shown["x"][:2] == ["raw", "2 %"] and shown["x"][-1] == "20 %"
    assert (shown["alike"], shown["optimum"], shown["raw"]) == (1, 1, 1)
    assert shown["named"] == ["Flags", "Food"] and shown["again"].startswith("edm2lite sweep runs")


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
def test_decays_have_a_place_each_in_a_browser(tmp_path):
    rows = [Point(None, 1024, value=4.0, low=3.8, high=4.2, num=100)]
    rows += [
        Point(None, 1024, decay=name, value=v, low=v - 0.2, high=v + 0.2, num=100)
        for name, v in [("linear:0.1", 3.0), ("linear:0.2", 1.5), ("cosine:0.2", 2.0)]
    ]
    path = tmp_path / "sweep.html"
    images = {p.cell: np.full((4, 1, 8, 8), 60 * i, np.uint8) for i, p in enumerate(rows)}
    write_page(path, rows, images, metric="fd", texts=PageTexts(verdict="", protocol=""))
    assert content(path)["axes"][0]["names"] == ["raw", "linear:0.1", "linear:0.2", "cosine:0.2"]
    shown = opened(path, 1200)
    assert shown["x"] == ["raw", "linear:0.1", "linear:0.2", "cosine:0.2"]
    assert [look["place"] for look in shown["seen"]] == ["2", "0", "1", "2", "2", "3"]
