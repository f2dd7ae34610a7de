"""Configuration of Sphinx, which builds the documentation.

Build it with ``uv run --group docs sphinx-build -W -b html docs build/docs``.
"""

import os
import re
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import django

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# The API reference imports dbtasks, which needs the settings of a project.
sys.path.insert(0, str(ROOT))
os.environ["DJANGO_SETTINGS_MODULE"] = "demo.settings"
django.setup()

project = "dbtasks"
author = "dbtasks contributors"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Names in single backticks, as docstrings have them, are code.
default_role = "code"
highlight_language = "none"
# Quotes in sentences about code are code.
smartquotes = False

# Headings get the same anchors as on GitHub, so that links work in both places.
myst_heading_anchors = 3

autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"dbtasks {release}"

# Pages whose text is a file elsewhere in the repository.
PAGES = {
    "overview": ROOT / "README.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
    "results": ROOT / "benchmarks" / "RESULTS.md",
    "cloudrun": ROOT / "demo" / "deployment" / "cloudrun" / "README.md",
}
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def read_page(app: Any, docname: str, source: list[str]) -> None:
    """Put the file's text in place of the page's, and make relative links lead to pages."""
    path = PAGES.get(docname, DOCS / f"{docname}.md")
    source[0] = _LINK.sub(partial(_page_link, path.parent), path.read_text())


def _page_link(folder: Path, link: re.Match[str]) -> str:
    """Return the link, which is relative to the folder, relative to the documentation."""
    target = (folder / link[1]).resolve()
    for docname, path in PAGES.items():
        if target == path:
            return f"]({docname}.md"
    return f"]({os.path.relpath(target, DOCS)}"


def setup(app: Any) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", read_page)
