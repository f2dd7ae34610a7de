"""``taskrunner --reload``: new runner processes when code changes.

Owns which files are watched, by Django's autoreloader, and what a change does. Never reloads a
module in place: the process with the old code ends, and one with the new code replaces it.
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

from ..backend import our_backends
from ..base import registry
from .child import Child, exit_reason
from .supervisor import MARGIN, Supervisor

Tell = Callable[[str | Path], None]
Watch = Callable[[Tell], None]


class Reloader(Supervisor):
    """A supervisor that replaces its processes, within their grace, when a file changes.

    A process that cannot start because of a mistake in the code is started again at the next
    change. `watch` receives a function and arranges that it is called with the path of each file
    that changes, in any thread.
    """

    def __init__(self, children: list[Child], watch: Watch, **options: Any) -> None:
        super().__init__(children, ends=False, wait=math.inf, **options)
        self._watch = watch
        # Processes with code from before the last change: when they end, they start again at once.
        self._outdated: set[Child] = set()

    def run(self, banner: str) -> int:
        """See Supervisor.run(). Files are watched in a thread that ends with the process."""
        reading, writing = socket.socketpair()
        self._selector.register(reading, selectors.EVENT_READ, partial(self._changed, reading))
        with reading, writing:

            def tell(path: str | Path) -> None:
                # The supervisor may have stopped.
                with suppress(OSError):
                    writing.sendall(os.fsencode(f"{path}\n"))

            self._watch(tell)
            return super().run(banner)

    def _start(self, child: Child) -> None:
        # A debugger that was killed with its process has left the terminal without echo.
        autoreload.ensure_echo_on()
        super()._start(child)

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
                    # It may be about to end because of a mistake that this change has corrected.
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
        is_first = not child.was_ready
        super()._hear(child)
        if is_first and child.is_ready and child.worker_id and child.process is not None:
            text = f"Worker {child.worker_id} started, pid {child.process.pid}."
            self._say(text, event="process.started", worker_id=child.worker_id)
        if child.reloads and child.is_ready:
            self._outdated.discard(child)

    def _replace(self, child: Child, code: int) -> None:
        if child in self._outdated:
            self._outdated.discard(child)
            child.start_at = time.monotonic()
        elif child.is_ready or code < 0:
            super()._replace(child, code)
        elif child.may_start_later:
            self._start_later(child)
        else:
            child.start_at = math.inf
            self._say(
                f"{child} {exit_reason(child, code)}; it starts again when a file changes.",
                event="process.ended",
                process=child.number,
                exit_code=code,
            )


def watch(tell: Tell) -> None:
    """Watch what Django's autoreloader watches, and new modules of the project's packages."""
    # Task modules are imported so that they are watched. The processes report errors in them.
    for backend in our_backends():
        registry.discover(backend.config.task_modules)
    reloader = autoreload.get_reloader()

    def changed(file_path: Path, **fields: Any) -> bool:
        tell(file_path)
        # True keeps Django from its own reaction to a change, which would end this thread.
        return True

    def work() -> None:
        autoreload.file_changed.connect(changed, weak=False)
        # Receivers of this signal add more to watch, such as templates and translations.
        autoreload.autoreload_started.send(sender=reloader)
        for folder in _packages():
            reloader.watch_dir(folder, "**/*.py")
        reloader.run_loop()

    threading.Thread(target=work, name="dbtasks-reload", daemon=True).start()


def _packages() -> Iterator[Path]:
    """Yield the folders of the project's own packages, in which new modules may appear."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    for name, module in sys.modules.copy().items():
        if "." not in name and (file := getattr(module, "__file__", None)):
            path = Path(file).resolve()
            if path.name == "__init__.py" and installed.isdisjoint(path.parents):
                yield path.parent


def _shown(path: str) -> str:
    with suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path
