"""Which files are code.

Owns what makes the site start anew when it changes. Never counts what a running site writes: its
database, its logs, its media.
"""

import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ...processes.reload import Tell, Watch

# Endings of code and of settings, wherever they are; all files in folders of templates count too.
CODE = {".py", ".pyi", ".html", ".jinja", ".jinja2", ".j2", ".mo", ".env", ".toml"}
TEMPLATES = {"templates", "jinja2"}
# Folders in which nothing is the project's own code.
FOREIGN = {"__pycache__", "node_modules", "site-packages"}


class CodeFilter:
    """Tells code below some folders from all else; what is below `aside` is never code."""

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
        """Tell whether the folder is the project's, up to the watched one in which it is."""
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
    """Tell whether the folder is a virtual environment."""
    return (folder / "pyvenv.cfg").exists()


def _is_waste(file: Path) -> bool:
    """Tell whether an editor or a database leaves such files for a moment."""
    return file.name.endswith(("~", ".swp", ".tmp")) or file.name.startswith((".", "#"))


def watching(folders: Iterable[Path], aside: Iterable[Path]) -> Watch:
    """Return what watches those folders, but for what is below `aside`."""
    folders = [folder.resolve() for folder in folders]
    is_code = CodeFilter(folders, [folder.resolve() for folder in aside])

    def start(tell: Tell) -> None:
        # With the extra only.
        from watchfiles import watch

        def work() -> None:
            for changes in watch(*folders, watch_filter=is_code, raise_interrupt=False):
                tell(min(path for _, path in changes))

        threading.Thread(target=work, name="dbtasks-reload", daemon=True).start()

    return start
