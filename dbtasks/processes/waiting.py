"""Waiting for a database that is not ready when a runner starts.

Owns for how long a process waits, and that a signal ends the wait. Never retries what cannot get
better by itself, such as an option that is not valid.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from ..console import preflight
from ..console.terminal import humanize_seconds
from .signals import stop_signals

# Seconds that a process waits under a supervisor such as systemd.
SUPERVISED_WAIT = 60.0
# Seconds between two attempts.
INTERVAL = 1.0


def default_wait() -> float:
    """Return the seconds to wait without the flag: none if a person is watching."""
    return SUPERVISED_WAIT if is_supervised() else 0.0


def is_supervised() -> bool:
    """Return whether systemd, supervisord or a container's first process started this one."""
    if sys.stderr is not None and sys.stderr.isatty():
        return False
    by_name = any(os.environ.get(name) for name in ("INVOCATION_ID", "SUPERVISOR_ENABLED"))
    return by_name or os.getpid() == 1 or os.getppid() == 1


def wait_for_database(db: str, seconds: float, say: Callable[..., None]) -> None:
    """Return once the database can be used; raise DatabaseNotReady if it cannot in that time.

    `say` is called with each reason once. A signal to stop ends the process with code 0.
    """
    try:
        preflight.try_database(db)
        return
    except preflight.DatabaseNotReady:
        if seconds <= 0:
            raise
    deadline, said = time.monotonic() + seconds, ""
    with _ended_by_signals():
        while True:
            try:
                preflight.try_database(db)
                return
            except preflight.DatabaseNotReady as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if str(error) != said:
                    said = str(error)
                    text = f"Waiting up to {humanize_seconds(seconds)} for the database: {said}"
                    say(text, event="runner.waiting")
            # The next attempt looks at the server as it is then.
            connections[db].close()
            time.sleep(min(INTERVAL, left))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the process on a signal; the first process of a container ignores them by default."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(0)
