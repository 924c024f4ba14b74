"""The site of the pages builds without a warning, and all links in it and in README.md lead on."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from pages import ROOT

pytest.importorskip("mkdocs", reason="pip install 'edm2lite[docs]'")

LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}
SHEETS = re.compile(r"@import[^;]*|url\([^)]*\)")


class Document(HTMLParser):
    """What one file of HTML defines and points to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.unnamed = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if (target := given.get(LOADED.get(tag, ""))) and given.get("rel") != "canonical":
            self.loaded.append(target)
        if tag == "img" and not given.get("alt"):
            self.unnamed.append(given.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: Document by path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return {path: Document(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def faults(page, target, ids):
    """Why a link of ``page`` does not lead on; None if it does, or leads out of the site."""
    address = urlsplit(target)
    if address.scheme or address.netloc:
        return None
    path = (page.parent / unquote(address.path)).resolve() if address.path else page
    if not path.exists():
        return f"{page.name}: {target}: there is no such file"
    anchor = unquote(address.fragment)
    if anchor and path in ids and anchor not in ids[path]:
        return f"{page.name}: {target}: there is no such place in it"
    return None


def test_every_link_anchor_and_picture_of_the_site_is_there(site):
    ids = {path: document.ids | {"__top", ""} for path, document in site.items()}
    found = [
        faults(page, target, ids)
        for page, document in site.items()
        if page.name != "404.html"  # its links are those of the top of a server
        for target in document.links + document.loaded
    ]
    assert len(found) > 500 and not [fault for fault in found if fault]
    assert not [src for document in site.values() for src in document.unnamed], "without alt text"


def test_the_site_loads_nothing_from_elsewhere(site):
    top = min(site, key=lambda path: len(path.parts)).parent
    for page, document in site.items():
        foreign = [target for target in document.loaded if urlsplit(target).netloc]
        assert not foreign, f"{page.name} loads {foreign}"
    for sheet in top.rglob("*.css"):
        foreign = [u for u in SHEETS.findall(sheet.read_text("utf-8")) if "//" in u.split(";")[0]]
        assert not [u for u in foreign if "data:" not in u], sheet


def test_the_site_holds_pages_and_no_sources(site):
    top = min(site, key=lambda path: len(path.parts)).parent
    suffixes = {path.suffix for path in top.rglob("*") if path.is_file()}
    assert not suffixes & {".py", ".md", ".pyc"}
    names = {path.relative_to(top).as_posix() for path in site}
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    more = {"404.html", "configuration.html", "results.html", "changes.html", "security.html"}
    assert names == {p.as_posix() for p in pages} | more


def test_nothing_is_left_of_markup(site):
    """A list needs an empty line above it here, though not on GitHub; reST is not understood."""
    for page in site:
        text = re.sub(r"<pre.*?</pre>", "", page.read_text("utf-8"), flags=re.S)
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.S):
            shown = re.sub(r"<code>.*?</code>|<[^>]+>", "", paragraph, flags=re.S)
            left = re.search(r"\n\s*([-*]|\d+\.|\|) |::|===|`", shown)
            assert left is None, f"{page.name}: {shown[:200]}"


SEARCHES = {
    "resume": "training.html",
    "wandb": "training.html",
    "config": "training.html",
    "token": "ema.html",
    "ddp": "ema.html",
    "fsdp": "ema.html",
    "amp": "ema.html",
    "batchnorm": "ema.html",
    "start_nimg": "ema.html",
    "0.9999": "units.html",
    "lora": "finetune.html",
    "license": "import.html",
    "slurm": "training.html",
    "fid": "sweep.html",
    "negative": "troubleshooting.html",
    "tensorboard": "training.html",
    "lightning": "integrations.html",
    "prompt": "text.html",
}


@pytest.mark.parametrize("word", SEARCHES)
def test_a_search_finds_the_right_page(site, word):
    """Among the ten pages that say a word most often, titles counted ten times."""
    top = min(site, key=lambda path: len(path.parts)).parent
    index = json.loads((top / "search/search_index.json").read_text("utf-8"))["docs"]
    counts = Counter()
    for entry in index:
        page, text = entry["location"].partition("#")[0], re.sub(r"<[^>]+>", " ", entry["text"])
        found = [re.findall(rf"(?<![\w.]){word}", t.lower()) for t in (entry["title"], text)]
        counts[page] += 10 * len(found[0]) + len(found[1])
    for page in ("changes.html", "results.html"):
        del counts[page]
    pages = [page for page, count in counts.most_common(10) if count]
    assert SEARCHES[word] in pages, pages


def test_the_navigation_has_every_page_once(site):
    settings = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader=yaml.BaseLoader)
    found = re.findall(r"[\w/-]+\.md", str(settings["nav"]))
    top = min(site, key=lambda path: len(path.parts)).parent
    pages = {p.relative_to(top).with_suffix(".md").as_posix() for p in site} - {"404.md"}
    assert len(found) == len(set(found)) and {*found} == pages
    titles = re.findall(r"'([^']+)': '[\w/-]+\.md'", str(settings["nav"]))
    assert {"Training", "EMA units", "Integrations", "Sweep"} <= {*titles}


def test_the_reference_of_ema_holds_all_its_names(site):
    import edm2lite.ema

    (ids,) = (d.ids for p, d in site.items() if p.parts[-2:] == ("reference", "ema.html"))
    assert {f"edm2lite.ema.{name}" for name in edm2lite.ema.__all__} <= ids


def slugs(text):
    """Anchors that GitHub gives the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_between_files_of_the_repository_lead_on(name):
    pages = sorted((ROOT / name).rglob("*.md")) if name == "docs" else [ROOT / name]
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    ids = {path: slugs(path.read_text("utf-8")) for path in files}
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert faults(page, target, ids) is None
            inside = (page.parent / urlsplit(target).path).resolve().is_relative_to(ROOT)
            assert inside or urlsplit(target).scheme, f"{page.name}: {target} is not in here"


def test_addresses_of_other_sites_are_secure_and_whole(site):
    """They are not fetched, here or anywhere in the tests; this lists them with -rA."""
    foreign = {t for d in site.values() for t in d.links if urlsplit(t).netloc}
    print(*sorted(foreign), sep="\n")
    assert foreign and all(re.fullmatch(r"https://[\w.-]+(/\S*)?", target) for target in foreign)
