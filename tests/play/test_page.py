"""The page in a browser, and its server: what moves, and that nothing leaves this machine."""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WAIT = 120_000  # milliseconds, on a machine with much else to do


def start(arguments, record):
    script = Path(__file__).with_name("loopback.py")
    command = [sys.executable, str(script), str(record), "play", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)


@pytest.fixture(scope="module")
def served(run_dir, tmp_path_factory):
    """Address of the page of a run that still trains, the run, and the record of connections."""
    folder = tmp_path_factory.mktemp("played")
    run, record = folder / "digits", folder / "connections.txt"
    (run / "snapshots").mkdir(parents=True)
    for file in (run_dir / "snapshots").glob("*-000000[01]*"):
        if int(file.stem.rpartition("-")[2]) < 1280:
            shutil.copy(file, run / "snapshots")
    process = start([run, "--port", "0"], record)
    try:
        line = process.stdout.readline().decode()
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", line)
        assert found, line + process.stdout.read().decode()
        yield found[1], run, record
    finally:
        process.terminate()
        process.communicate(timeout=60)


def answer(address, host):
    request = urllib.request.Request(address, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_the_server_answers_on_the_loopback_alone(served):
    address, _, record = served
    port = int(address.rpartition(":")[2])
    status, html = answer(address, f"127.0.0.1:{port}")
    assert status == 200
    loaded = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']+)""", html)
    assert not [url for url in loaded if "//" in url]
    assert answer(address, "somewhere.example")[0] == 400  # another name that points here
    with socket.socket() as own:  # the addresses of this machine other than the loopback
        own.settimeout(5)
        try:
            other = socket.gethostbyname(socket.gethostname())
        except OSError:
            other = "127.0.0.1"
        if not other.startswith("127."):
            assert own.connect_ex((other, port)) != 0
    assert record.read_text() == ""


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
def test_the_page_in_a_browser(served, run_dir):
    """The slider gives other images and another command; new snapshots and mistakes are shown."""
    sync = pytest.importorskip("playwright.sync_api")
    address, run, record = served
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(WAIT)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        picture, command = page.locator(".images img"), page.locator("textarea").last
        words, place = page.locator(".prose.words"), page.locator(".prose.place")

        def shows(text):
            sync.expect(words).to_contain_text(text, timeout=WAIT)

        shows("digits@sigma_rel=0.1 at 1,120 images: predicted error")
        first = picture.get_attribute("src")
        assert page.locator(".curve img").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        slider = page.get_by_label(re.compile("EMA length")).first
        slider.fill("16.5")
        slider.press("Enter")
        sync.expect(place).to_contain_text("16.5 %: predicted error", timeout=WAIT)
        shows("digits@sigma_rel=0.165 at 1,120")
        assert picture.get_attribute("src") != first
        assert f"{run}@sigma_rel=0.165 --class all" in command.input_value()

        for file in (run_dir / "snapshots").glob("*-0000001280.*"):
            shutil.copy(file, run / "snapshots")
        time = page.get_by_role("combobox", name="training time")
        sync.expect(time).to_have_value(re.compile("latest: 1,280 images"), timeout=WAIT)

        seed = page.get_by_label("first seed")
        seed.fill("-3")
        seed.press("Tab")
        shows("seeds must be from 0 to 2147483648, got -3")
        seed.fill("7")
        seed.press("Tab")
        shows("at 1,280 images: predicted error")
        browser.close()
    assert not wrong
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert record.read_text() == ""


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start([tmp_path, "--port", port], tmp_path / "connections.txt")
        said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1
    assert f"Error: port {port} of 127.0.0.1 must be free, it is not" in said
