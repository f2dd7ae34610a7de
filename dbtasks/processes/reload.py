"""``taskrunner --reload``: runners that start anew, in new processes, when code changes.

Owns which files are watched, through Django's autoreloader, and what a change does. Never reloads
a module in place: old code ends with its process, and a process of new code takes its place.
"""

import math
import os
import selectors
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from django.utils import autoreload

from ..base import registry
from .child import Child, exit_reason
from .supervisor import MARGIN, Supervisor

Tell = Callable[[str | Path], None]
Watch = Callable[[Tell], None]


class Reloader(Supervisor):
    """A supervisor whose processes stop, in their grace, and start anew when a file changes.

    One that cannot start, for a mistake in the code, starts again at the next change. `watch` sees
    to it that what it is given is called with the path of each file that changes, in any thread.
    """

    def __init__(self, children: list[Child], watch: Watch, **options: Any) -> None:
        super().__init__(children, ends=False, **options)
        self._watch = watch
        # Those whose end is no reason to wait for another change: they have not seen the last one.
        self._outdated: set[Child] = set()

    def run(self, banner: str) -> int:
        """See Supervisor.run(). Files are watched in a thread that ends with the process."""
        reading, writing = socket.socketpair()
        self._selector.register(reading, selectors.EVENT_READ, partial(self._changed, reading))
        with reading, writing:

            def tell(path: str | Path) -> None:
                # A supervisor that has stopped listens no more.
                with suppress(OSError):
                    writing.sendall(os.fsencode(f"{path}\n"))

            self._watch(tell)
            return super().run(banner)

    def _changed(self, reading: socket.socket) -> None:
        path = os.fsdecode(reading.recv(65536)).split("\n", 1)[0]
        if self._is_stopping:
            return
        why = f"{_shown(path)} has changed"
        self._say(f"{why}; the new code takes over.", event="supervisor.reloading", path=path)
        for child in self._children:
            if child not in self._alive:
                child.start_at = time.monotonic()
            elif child.reloads:
                if not child.is_ready:
                    # It may be about to end, for a mistake that this change has mended.
                    self._outdated.add(child)
                child.is_ready = False
                child.send("reload")
            else:
                self._outdated.add(child)
                child.send("stop", 1, signal.SIGTERM, why)
        self._deadline = time.monotonic() + self._grace + MARGIN

    def _reap(self) -> None:
        super()._reap()
        if not (self._late() or self._is_stopping):
            self._deadline = None

    def _late(self) -> list[Child]:
        if self._is_stopping:
            return self._alive
        return [child for child in self._outdated if not child.reloads]

    def _hear(self, child: Child) -> None:
        super()._hear(child)
        if child.reloads and child.is_ready:
            self._outdated.discard(child)

    def _replace(self, child: Child, code: int) -> None:
        if child in self._outdated:
            self._outdated.discard(child)
            child.start_at = time.monotonic()
        elif child.is_ready or code < 0:
            super()._replace(child, code)
        else:
            child.start_at = math.inf
            self._say(
                f"{child} {exit_reason(child, code)}; it starts again when a file changes.",
                event="process.ended",
                process=child.number,
                exit_code=code,
            )


def watch(tell: Tell) -> None:
    """Watch what Django's autoreloader would, and new modules of the project's packages."""
    # What tasks import is watched because it is loaded here too; the processes say what is wrong.
    registry.discover()
    reloader = autoreload.get_reloader()

    def changed(file_path: Path, **fields: Any) -> bool:
        tell(file_path)
        # Django's own answer to a change would be to end this thread.
        return True

    def work() -> None:
        autoreload.file_changed.connect(changed, weak=False)
        # Receivers name more to watch, as templates and translations.
        autoreload.autoreload_started.send(sender=reloader)
        for folder in _packages():
            reloader.watch_dir(folder, "**/*.py")
        reloader.run_loop()

    threading.Thread(target=work, name="dbtasks-reload", daemon=True).start()


def _packages() -> Iterator[Path]:
    """Yield the folders of the project's own packages: modules may be added to these."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    for name, module in tuple(sys.modules.items()):
        if "." not in name and (file := getattr(module, "__file__", None)):
            path = Path(file).resolve()
            if path.name == "__init__.py" and installed.isdisjoint(path.parents):
                yield path.parent


def _shown(path: str) -> str:
    with suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path
