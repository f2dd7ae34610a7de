"""Faults at any call of any thread of a runner.

A thread's role is its name, with N for its number; the thread of run() has the role "runner". The
calls are found as they are made, so that a new thread or call needs no edit here.
"""

import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dbtasks
from dbtasks.db.service import Activity
from dbtasks.runner import watch

PACKAGE = Path(dbtasks.__file__).parent
RUNNER = "runner"
# Functions that only set an attribute, and so never hang.
PLAIN = {Activity.step.__code__, Activity.rest.__code__}


class Place(NamedTuple):
    """A call that a thread of some role makes: the entry of a function, or a call into C."""

    role: str
    code: Any
    line: int
    name: str

    def __str__(self) -> str:
        module = Path(self.code.co_filename).relative_to(PACKAGE)
        where = f"{module}:{self.line} {self.code.co_qualname}"
        return f"{self.role}, {where} {self.name}".strip()


class Injection:
    """Counts the calls that dbtasks' code makes, and lets one of them fail.

    `fault` is an exception class, or None to let the thread hang until release(). Without a `place`
    nothing fails.
    """

    def __init__(
        self, place: Place | None = None, number: int = 0, fault: type[BaseException] | None = None
    ) -> None:
        self._place, self._number, self._fault = place, number, fault
        self.calls: Counter[Place] = Counter()
        self.fired = threading.Event()
        self._released = threading.Event()

    def __enter__(self) -> "Injection":
        threading.setprofile(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)
        self.release()

    def release(self) -> None:
        """Let what hangs go on, and let nothing fail any more."""
        self._released.set()

    def _on_call(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_call"):
            return
        if self._released.is_set():
            sys.setprofile(None)
            return
        role = role_of(threading.current_thread())
        if not role or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        name = getattr(argument, "__name__", "") if event == "c_call" else ""
        place = Place(role, frame.f_code, frame.f_lineno, name)
        self.calls[place] += 1
        if place != self._place or self.calls[place] < self._number or self.fired.is_set():
            return
        if self._fault is None and (frame.f_code in PLAIN or _is_foreign(frame)):
            return
        self.fired.set()
        sys.setprofile(None)
        if self._fault is not None:
            raise self._fault
        self._released.wait(60)


def role_of(thread: threading.Thread) -> str:
    """Return the role of the thread; "" if it is none of a runner's."""
    if thread.name == RUNNER:
        return RUNNER
    return re.sub(r"\d+", "N", thread.name) if thread.name.startswith("dbtasks-") else ""


def _is_foreign(frame: Any) -> bool:
    """Return whether the project's own code is on the stack: what hangs there has timeouts."""
    while frame is not None:
        if frame.f_code in watch._FOREIGN:
            return True
        frame = frame.f_back
    return False


def silence(restore: Callable[..., Any]) -> None:
    """Say nothing of threads that die, until the test ends."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    restore(setattr, threading, "excepthook", hook)
