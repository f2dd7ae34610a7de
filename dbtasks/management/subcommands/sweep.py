"""``manage.py dbtasks sweep``: do once what a runner does all the time."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...console import flags, preflight
from ...console.terminal import humanize_seconds, plural
from ...options import values
from ...sweeping import Swept, sweep
from ...wakeup.hints import aware

HELP = (
    "Do once what a runner does all the time: fire ticks, run due tasks, rescue lost ones, delete "
    "expired ones. Exits with 3 if a task failed, with 5 after Ctrl-C or SIGTERM."
)
# The longest time that a sweep may run tasks, or between two sweeps, in seconds: a day.
LONGEST = 86_400.0


def add_arguments(parser: CommandParser) -> None:
    """Add the limits of the sweep."""
    flags.add_backend(parser, "Alias in TASKS whose tasks are run (default: default).")
    parser.add_argument(
        *("-q", "--queue"), metavar="NAME", help="Run tasks of this queue only (default: all)."
    )
    parser.add_argument(
        "--max-tasks",
        type=values.whole("number of tasks", 1, 1_000_000_000),
        metavar="N",
        help="Run at most this many tasks (default: no limit).",
    )
    parser.add_argument(
        "--max-seconds",
        type=values.seconds("time limit", 0.1, LONGEST),
        default=25.0,
        metavar="TIME",
        help="Start no task later than this (default: 25 seconds).",
    )
    parser.add_argument(
        "--interval",
        type=values.seconds("interval", 1.0, LONGEST),
        default=60.0,
        metavar="TIME",
        help="Time between two sweeps. A schedule with missed='skip' fires up to 1.5 times as "
        "late (default: 60 seconds).",
    )
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="Print a JSON object instead of text."
    )


def handle(command: BaseCommand, options: dict[str, Any]) -> int:
    """Sweep, and print what was done; return 3 if a task failed, 5 if interrupted."""
    backend = preflight.ready_backend(options["backend"])
    queue = options["queue"]
    preflight.check_queues(backend, None if queue is None else [queue])
    try:
        with _sigterm_as_ctrl_c():
            swept = sweep(
                backend.alias,
                max_tasks=options["max_tasks"],
                max_seconds=options["max_seconds"],
                queue_name=queue,
                interval=options["interval"],
            )
    except KeyboardInterrupt:
        command.stderr.write("Interrupted. If a task ran, it was requeued.")
        return 5
    if options["as_json"]:
        command.stdout.write(json.dumps(_fields(swept)))
    elif options["verbosity"]:
        command.stdout.write(_sentence(swept))
    return 3 if swept.failed else 0


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM in the block requeue the task that runs, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fields(swept: Swept) -> dict[str, Any]:
    """Return what was done as JSON values, without results."""
    next_due = aware(swept.next_due)
    names = ("ran", "succeeded", "failed", "again", "rescued", "fired", "hinted", "purged")
    return {name: getattr(swept, name) for name in names} | {
        "due_left": swept.is_due_left,
        "next_due": next_due and next_due.astimezone(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(swept.seconds, 3),
    }


def _sentence(swept: Swept) -> str:
    """Return a line about what was done."""
    done = {
        "succeeded": swept.succeeded,
        "failed": swept.failed,
        "to be run again": swept.again,
        "rescued": swept.rescued,
        "fired by schedules": swept.fired,
        "hinted": swept.hinted,
        "deleted": swept.purged,
    }
    parts = ", ".join(f"{count:,} {what}" for what, count in done.items() if count)
    left = " More is due." if swept.is_due_left else ""
    ran = f"Ran {plural(swept.ran, 'task')} in {humanize_seconds(swept.seconds)}"
    return f"{ran}{': ' if parts else ''}{parts}.{left}"
