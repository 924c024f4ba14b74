"""For MkDocs: files of the repository that the site shows as pages, and links to them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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
    return files


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
