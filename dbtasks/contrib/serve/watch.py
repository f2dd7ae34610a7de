"""The files whose changes restart the site.

Owns which files are code. Never includes what a running site writes: its database, logs and media.
"""

import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ...processes.reload import Tell, Watch

# Suffixes of code and settings in all folders. In template folders, all files count.
CODE = {".py", ".pyi", ".html", ".jinja", ".jinja2", ".j2", ".mo", ".env", ".toml"}
TEMPLATES = {"templates", "jinja2"}
# Folders that contain no code of the project.
FOREIGN = {"__pycache__", "node_modules", "site-packages"}


class CodeFilter:
    """Accepts changes of code in `folders`; nothing in `aside` is code."""

    def __init__(self, folders: Iterable[Path], aside: Iterable[Path]) -> None:
        self._folders, self._aside = set(folders), set(aside)

    def __call__(self, change: Any, path: str) -> bool:
        file = Path(path)
        if not self._is_own(file.parent):
            return False
        if file.suffix in CODE or file.name.startswith(".env"):
            return True
        return any(parent.name in TEMPLATES for parent in file.parents) and not _is_waste(file)

    def _is_own(self, folder: Path) -> bool:
        """Return whether the folder and those above it, up to a watched one, are the project's."""
        for parent in (folder, *folder.parents):
            if parent in self._folders:
                return parent not in self._aside
            if parent in self._aside or parent.name in FOREIGN or parent.name.startswith("."):
                return False
            if _is_environment(parent):
                return False
        return True


@cache
def _is_environment(folder: Path) -> bool:
    """Return whether the folder is a virtual environment."""
    return (folder / "pyvenv.cfg").exists()


def _is_waste(file: Path) -> bool:
    """Return whether it is a temporary file of an editor or a database."""
    return file.name.endswith(("~", ".swp", ".tmp")) or file.name.startswith((".", "#"))


def watching(folders: Iterable[Path], aside: Iterable[Path]) -> Watch:
    """Return a function that watches these folders, except what is in `aside`."""
    folders = [folder.resolve() for folder in folders]
    is_code = CodeFilter(folders, [folder.resolve() for folder in aside])

    def start(tell: Tell) -> None:
        # Installed with the extra `serve` only.
        from watchfiles import watch

        def work() -> None:
            for changes in watch(*folders, watch_filter=is_code, raise_interrupt=False):
                tell(min(path for _, path in changes))

        threading.Thread(target=work, name="dbtasks-reload", daemon=True).start()

    return start
