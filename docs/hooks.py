"""For MkDocs: files of the repository that the site shows as pages, and links to them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from edm2lite.config_file.comments import MAY_CHANGE, Key, choices, keys
from edm2lite.training.config import RunConfig

ROOT = Path(__file__).parent.parent
PAGES = {
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def configuration() -> str:
    """The page of all keys of a configuration, of the sentences that its classes have."""
    head = (
        "# Configuration",
        "Every key of a training configuration. `edm2lite config` lists the shipped configurations,"
        " `edm2lite config NAME --template` prints one as YAML with these sentences in it, and"
        " `edm2lite train NAME --set KEY=VALUE` changes a value. A count may be written `10k`,"
        f" `64Ki`, `1.5M` or `8Mi`. “{MAY_CHANGE}” marks the keys with which an existing run may be"
        " continued; every other change would make it another run.",
    )
    return "\n\n".join([*head, *_sections(RunConfig, "", "All")]) + "\n"


def _sections(
    cls: type, path: str, title: str, within: str = "", may_change: bool = False
) -> list[str]:
    """A heading and a table of the keys of a class, then those of the parts below it."""
    table = ["| key | value | default | meaning |", "|---|---|---|---|"]
    below = []
    for key in keys(cls):
        free = may_change or key.may_change
        table.append(_row(key, path, f" {MAY_CHANGE}" if free else ""))
        for kind, part in {} if key.part is None else choices(key.part).items():
            name = f"`{path}{key.name}`{within}" + (f" of kind `{kind}`" if kind else "")
            inner = f" in kind `{kind}`" if kind else ""
            below += _sections(part, f"{path}{key.name}.", name, inner, free)
    return [f"## {title}", "\n".join(table), *below]


def _row(key: Key, path: str, mark: str) -> str:
    default = "must be given" if key.default is None else f"`{key.default}`"
    cells = (f"`{path}{key.name}`", key.type, default, key.sentence + mark)
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ that work in a checkout lead to those pages."""
    up = "../" * page.file.src_uri.count("/")
    for source, name in PAGES.items():
        markdown = markdown.replace(f"]({up}../{source}", f"]({up}{name}")
    if page.file.src_uri in PAGES.values():  # its links start where its file lies
        markdown = markdown.replace("](../docs/", "](").replace("](docs/", "](")
        for source, name in PAGES.items():
            markdown = markdown.replace(f"]({source}", f"]({name}")
    return markdown
