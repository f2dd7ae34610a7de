"""What the commands share: flags, the state of the database, signals, and the run itself.

Owns exit codes, and what a signal does. Never runs tasks or touches a row: it starts a Runner and
asks it to stop.
"""

import faulthandler
import os
import re
import signal
import sys
import threading
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.tasks import task_backends

from .backend import DatabaseBackend
from .checks import check_pool
from .exceptions import DurationError, RunnerError
from .leash import stop_signals
from .models import MAX_QUEUE, ScheduledTask
from .report import Report, one_line, plural, span
from .runner import Runner, check_backend
from .schedule import Duration

# Exit codes, beside 1 (could not start), 2 (wrong flag) and 128 + n (second signal n). With REPLACE
# a runner that can do little more asks its supervisor, whichever that is, for another in its place.
TASK_FAILED, ABANDONED, REPLACE = 3, 5, 6


# Flags


def whole(what: str, least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) or not least <= int(text) <= most:
            raise ArgumentTypeError(
                f"{text!r} is no {what}. Use a whole number from {least:,} to {most:,}."
            )
        return int(text)

    return parse


def seconds(what: str, least: float, most: float) -> Callable[[str], float]:
    """Return an argparse type: seconds as a number, or a duration such as ``90s`` or ``5m``."""

    def parse(text: str) -> float:
        found = _seconds(text)
        if found is None or not least <= found <= most:
            raise ArgumentTypeError(
                f"{text!r} is no {what}. Use seconds from {least:g} to {most:,g}, or a duration "
                "such as '0.5s', '90s' or '5m'."
            )
        return found

    return parse


def duration(text: str) -> Duration:
    """Return the duration that the text, or the number of seconds in it, stands for."""
    found = _seconds(text)
    try:
        return Duration(text if found is None else found)
    except DurationError as error:
        raise ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float | None:
    """Return the seconds in a number or duration; None if the text is neither."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return Duration(text).total_seconds()
    except DurationError:
        return None


def worker_name(text: str) -> str:
    """Return the text if it can start a worker id: 1 to 100 printable characters."""
    if not 1 <= len(text) <= 100 or not text.isprintable() or text != text.strip():
        raise ArgumentTypeError(
            f"{text!r} is no worker id. Use 1 to 100 printable characters, no space at the ends."
        )
    return text


def check_queues(backend: DatabaseBackend, queues: Sequence[str] | None) -> None:
    """Raise CommandError if the backend can have no such queue."""
    for queue in queues or ():
        if backend.queues and queue not in backend.queues:
            known = ", ".join(map(repr, sorted(backend.queues)))
            raise CommandError(
                f"There is no queue {queue!r} in TASKS[{backend.alias!r}]['QUEUES']. Use {known}, "
                "or add it there."
            )
        if not 1 <= len(queue) <= MAX_QUEUE:
            raise CommandError(
                f"{queue!r} is no queue name. Use 1 to {MAX_QUEUE} characters for --queue."
            )


def add_backend(parser: Any, help: str, *short: str) -> None:
    """Add the flag that names one backend to a parser, or to a group of it."""
    parser.add_argument(*short, "--backend", default="default", metavar="ALIAS", help=help)


def formatter(base: Any) -> Any:
    """Return the class with which help keeps the lines of its epilog as they are."""
    return type("HelpFormatter", (base, RawDescriptionHelpFormatter), {})


def one_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise CommandError if no runner can serve it."""
    try:
        return check_backend(alias)
    except (ImproperlyConfigured, RunnerError) as error:
        raise CommandError(str(error)) from error


def ready_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise CommandError if its rows are out of reach."""
    backend = one_backend(alias)
    check_database(backend.database)
    return backend


def our_backends() -> list[str]:
    """Return the aliases in TASKS that keep their tasks as rows, in their order."""
    return [a for a in task_backends.settings if isinstance(task_backends[a], DatabaseBackend)]


# The database


def check_connection(db: str) -> None:
    """Raise CommandError if the database cannot be reached."""
    try:
        connections[db].ensure_connection()
    except (DatabaseError, ImproperlyConfigured) as error:
        raise CommandError(
            f"The database {db!r} cannot be reached: {one_line(error)} Check DATABASES[{db!r}] "
            "and that the server runs."
        ) from error


def check_database(db: str) -> None:
    """Raise CommandError if the database cannot be reached, or is not migrated."""
    check_connection(db)
    try:
        ScheduledTask.objects.using(db).first()
    except DatabaseError as error:
        where = "" if db == DEFAULT_DB_ALIAS else f" --database {db}"
        raise CommandError(
            f"The database {db!r} lacks the table of dbtasks, or has that of another version: "
            f"{one_line(error)} Run 'manage.py migrate{where}' first."
        ) from error


def disconnect() -> None:
    """Close every connection of this thread, and the pools behind them."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if close_pool := getattr(connection, "close_pool", None):
            close_pool()


def small_pool(db: str, threads: int) -> str | None:
    """Return a sentence if the connection pool cannot serve so many threads; else None."""
    return next((f"{warning.msg} {warning.hint}" for warning in check_pool(db, threads)), None)


# Signals


class Signals:
    """Makes SIGTERM, SIGINT and SIGHUP stop the runner while the block runs, in the main thread.

    The first one asks it to finish what runs, the second to leave now, the third leaves at once.
    SIGQUIT only prints on stderr where each thread is.
    """

    def __init__(self, runner: Runner, report: Report) -> None:
        self._runner, self._report = runner, report
        self.received: list[int] = []

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        # The interpreter writes each signal's number into the pipe, whatever the main thread is
        # doing: a handler would wait for it to come back from the database, and could ask for a
        # lock that the main thread holds.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._fd_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        wanted = self.wanted()
        self._before = {number: signal.signal(number, noted) for number in wanted}
        threading.Thread(target=self._listen, name="dbtasks-signals", daemon=True).start()
        # By a handler in C, which needs no help of an interpreter that a task may hold on to.
        faulthandler.register(signal.SIGQUIT, file=2)
        # Whoever started us may have held them back until we can take them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        faulthandler.unregister(signal.SIGQUIT)
        signal.set_wakeup_fd(self._fd_before)
        # The end of the file ends the listener.
        os.close(self._pipe[1])

    def wanted(self) -> list[signal.Signals]:
        """Return the signals that stop the runner."""
        return stop_signals()

    def _listen(self) -> None:
        reading = self._pipe[0]
        try:
            while byte := os.read(reading, 1):
                if byte[0] in self._before:
                    self._take(byte[0])
        finally:
            os.close(reading)

    def _take(self, number: int, why: str | None = None) -> None:
        self.received.append(number)
        name = signal.Signals(number).name
        if len(self.received) > 2:
            # Rows that stay RUNNING are given back when the runner is missed.
            os._exit(128 + number)
        self._runner.stop()
        if len(self.received) == 1:
            text = self._first()
        else:
            text = "leaving now; running tasks are given back, to be started again."
        self._report.say(f"{why or name}: {text}", event="runner.stopping", signal=name)

    def _first(self) -> str:
        if not (running := self._runner.running):
            return "stopping; nothing runs, and what has not started is given back."
        return (
            f"waiting for {plural(running, 'running task')}, {span(self._runner.grace)} at most; "
            "what has not started is given back. Once more to leave now."
        )


def noted(number: int, frame: Any) -> None:
    """Do nothing: the pipe has the signal already."""


# The run


def run(
    runner: Runner,
    report: Report,
    banner: str,
    listen: Callable[[Runner, Report], Signals] = Signals,
) -> int:
    """Run the runner until it ends or a signal ends it; return the exit code."""
    with listen(runner, report) as signals:
        report.start(runner, banner)
        try:
            runner.run()
        finally:
            report.close()
    if len(signals.received) > 1:
        return 128 + signals.received[1]
    if runner.worn_out:
        return REPLACE
    if runner.abandoned:
        return ABANDONED
    return TASK_FAILED if runner.drain and report.failed else 0


def leave(code: int) -> None:
    """End the process with that code now, whatever threads still run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
