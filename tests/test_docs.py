"""The example in docs/ema.md runs as written, and does what the page says."""

import re
from pathlib import Path

from edm2lite.ema import list_snapshots

DOCS = Path(__file__).parent.parent / "docs"


def test_the_example_of_the_ema_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (DOCS / "ema.md").read_text(encoding="utf-8"), re.S)
    exec(compile(code[1], "docs/ema.md", "exec"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["0.03", "0.07", "0.13"]
    errors = [float(row[1]) for row in rows]
    # noise of standard deviation 1 at lr 0.05 leaves about 0.1 per weight in the raw iterates; the
    # longer the average the less
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.15
    assert all(float(row[-1]) < 0.02 for row in rows)
    assert len(list_snapshots(tmp_path / "runs/mine")) == 60


def test_pictures_that_pages_show_are_there():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} shows {target}"
