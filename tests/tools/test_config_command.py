"""``edm2lite config``: what its list says, and text that loads as what it was made of."""

import dataclasses
import re
import sys

import pytest
from click.testing import CliRunner
from pages import DOCS

from edm2lite.config_file.comments import MAY_CHANGE, choices, commented, keys
from edm2lite.config_file.source import shipped
from edm2lite.tools.config import main
from edm2lite.training.config import RunConfig, load_config
from edm2lite.training.fields import changeable


def run(*words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def classes(cls=RunConfig):
    """Every class of a configuration, our choices of parts included."""
    yield cls
    for key in keys(cls):
        for part in {} if key.part is None else choices(key.part).values():
            yield from classes(part)


@pytest.mark.parametrize("cls", dict.fromkeys(classes()), ids=lambda cls: cls.__name__)
def test_every_key_has_a_sentence(cls):
    for key in keys(cls):
        assert re.fullmatch(r"\S.*\w.*[.\]]", key.sentence), f"document {cls.__name__}.{key.name}"
        assert "``" not in key.sentence and ":`" not in key.sentence
        assert "value" not in key.type


def test_the_list_names_every_configuration_with_what_it_holds():
    head, *rows = run().splitlines()
    assert head.split("  ")[0] == "name" and [row.split()[0] for row in rows] == shipped()
    assert re.search(r" 722 539  8 x 8 x 1 +2 CPU cores$", rows[shipped().index("digits")])
    for row in rows:
        config = load_config(row.split()[0], ["data.source=x"])
        side, channels = config.net.backbone.img_resolution, config.net.backbone.img_channels
        assert f" {side} x {side} x {channels} " in row
        assert row.split()[1] == config.net.backbone.kind


@pytest.mark.parametrize("name", shipped())
def test_a_template_loads_as_the_configuration_that_it_shows(name, tmp_path):
    config = load_config(name, ["data.source=DATASET"] if "DATASET" in run(name) else [])
    text = run(name, "--template")
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert load_config(str(tmp_path / "again.yaml")) == config
    assert max(map(len, text.splitlines())) < 130


def test_lists_of_parts_have_their_comments_too(tmp_path):
    config = load_config("digits", [
        "hooks=[{kind: validation, data: digits, every: 640}]",
        "sinks=[{kind: tensorboard}]",
        "data.condition_dropout={label: 0.5}",
        "validation={data: digits, every: 64}",
    ])  # fmt: skip
    text = commented(config, "Two lines\n\nof a title")
    assert text.startswith("# Two lines\n#\n# of a title\n\n# Training data.\ndata:\n")
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(str(tmp_path / "again.yaml")) == config
    assert "  # Number of images, from the first on; all there are if there are fewer.\n" in text


def test_keys_that_may_change_are_marked():
    """The marks are those of the fields by which a continued run is judged."""
    text = run("digits", "--template")
    marked = re.findall(r"((?:^ *#.*\n)+) *(\w+):", text, re.M)
    names = [name for comment, name in marked if MAY_CHANGE in re.sub(r"\n *# ?", " ", comment)]
    assert names == [name.rpartition(".")[2] for name in _ordered(load_config("digits"))]


def _ordered(config):
    """The dotted names that may change, in the order of the text."""
    names = changeable(config)
    order = [key.name for key in keys(RunConfig)]
    return sorted(names, key=lambda name: order.index(name.partition(".")[0]))


def test_the_page_of_the_site_has_every_key(monkeypatch):
    pytest.importorskip("mkdocs", reason="pip install 'edm2lite[docs]'")
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.delitem(sys.modules, "hooks", raising=False)
    import hooks

    text = hooks.configuration()
    for field in dataclasses.fields(RunConfig):
        assert f"\n| `{field.name}` | " in text
    for key in ("data.flip", "net.backbone.model_channels", "loss.P_mean", "optim.ref_lr"):
        assert f"\n| `{key}` | " in text
    assert "| `batch_size` | count | `2Ki` |" in text
    titles = re.findall(r"^## (.*)", text, re.M)
    assert len(set(titles)) == len(titles)


def test_a_template_of_nothing_is_refused():
    result = CliRunner().invoke(main, ["--template"])
    assert result.exit_code == 2 and "give the CONFIG" in result.output
