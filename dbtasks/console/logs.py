"""The log output of a command, for projects that do not configure logging.

Owns a handler that exists while the command runs. Never changes a project's LOGGING.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from ..db.service import OUTAGE_MARK
from .terminal import Terminal, printable

# Seconds between two lines that say the same about a database that is away.
OUTAGE_INTERVAL = 60.0


class _Formatter(logging.Formatter):
    """Formats a record as one line, with its traceback below, or as one JSON object."""

    def __init__(self, as_json: bool, process: int | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._as_json, self._process = as_json, process

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._as_json:
            return "\n".join(printable(line, 2000) for line in text.splitlines())
        return json.dumps(
            {
                "event": "log",
                "time": now_text(),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                "traceback": record.exc_text,
                **process_field(self._process),
            }
        )


class OncePerMinute(logging.Filter):
    """Drops a record about a database that is away, if its like was shown within a minute."""

    def __init__(self) -> None:
        super().__init__()
        # By message: when it was shown last, on the monotonic clock.
        self._shown: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(record, OUTAGE_MARK, False):
            return True
        now, key = time.monotonic(), (record.name, str(record.msg))
        if now - self._shown.get(key, -OUTAGE_INTERVAL) < OUTAGE_INTERVAL:
            return False
        self._shown[key] = now
        return True


@contextmanager
def log_output(
    screen: Terminal, verbosity: int, as_json: bool = False, process: int | None = None
) -> Iterator[None]:
    """Show what the package logs if the project does not, and keep all logs from breaking the bar.

    The loggers are restored when the block ends.
    """
    ours, tasks = logging.getLogger("dbtasks"), logging.getLogger("django.tasks")
    levels = ours.level, tasks.level
    handler: logging.Handler = logging.NullHandler()
    if verbosity:
        handler = logging.StreamHandler(screen)
        handler.setFormatter(_Formatter(as_json, process))
        if verbosity == 1:
            handler.addFilter(OncePerMinute())
    silent = not ours.handlers and not logging.getLogger().handlers
    if silent:
        ours.addHandler(handler)
        if not ours.level:
            ours.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
    if not settings.LOGGING and not tasks.level:
        # With DEBUG, Django's console handler would add two lines of its own for each task.
        tasks.setLevel(logging.WARNING if verbosity else logging.CRITICAL)
    consoles = _redirected(screen) if verbosity and screen.isatty() else []
    try:
        yield
    finally:
        for console, stream in consoles:
            console.setStream(stream)
        ours.removeHandler(handler)
        ours.setLevel(levels[0])
        tasks.setLevel(levels[1])


def _redirected(screen: Terminal) -> list[tuple[Any, Any]]:
    """Make other handlers of stderr write above the bar; return them with their old stream."""
    found: list[tuple[Any, Any]] = []
    for name in ("", "django", "django.tasks", "dbtasks"):
        found += [
            (handler, handler.setStream(screen))
            for handler in logging.getLogger(name).handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
    return found


def process_field(process: int | None) -> dict[str, int]:
    """Return the field that names the process, if there are several."""
    return {} if process is None else {"process": process}


def now_text() -> str:
    """Return the current time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat()
