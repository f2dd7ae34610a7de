"""A runner inside a process of another server.

Owns its configuration by environment variables, and the rule that one process per machine hosts it
at a time. Never ends the process: the server does.
"""

import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import connections

from ..console import preflight
from ..console.banner import banner
from ..console.logs import log_output
from ..console.report import Report
from ..console.terminal import Terminal, humanize_seconds, plural
from ..exceptions import RunnerError
from ..options import values
from ..options.runner import FLAGS, default_workers
from ..processes import run as processes_run
from ..processes.run import Signals
from ..runner.runner import Runner

logger = logging.getLogger("dbtasks.runner")

# Seconds between two attempts to take the lock.
LOCK_INTERVAL = 1.0
# Seconds before a runner that could not start is tried again.
RESTART_PAUSE = 10.0
# Seconds that a runner may take to stop after its grace.
STOP_MARGIN = 5.0
# Seconds in which a repeated signal counts once: a terminal or systemd sends it to all processes,
# and their master sends it to them again.
SIGNAL_DEBOUNCE = 1.0


def configured(**defaults: Any) -> dict[str, Any]:
    """Return arguments for a Runner: from the environment, else `defaults`, else as taskrunner's.

    Raise ImproperlyConfigured if the value of a variable is not valid.
    """
    found: dict[str, Any] = {"workers": default_workers()} | defaults
    for name, flag in FLAGS.items():
        if flag.variable is not None and (text := os.environ.get(flag.variable)):
            found[name] = _read(flag.variable, text, flag.read_variable)
    return found


def _read(variable: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ArgumentTypeError as error:
        raise ImproperlyConfigured(f"{variable} in the environment: {error}") from None


def is_wanted() -> bool:
    """Return whether a server may start a runner; DBTASKS_RUNNER=off forbids it."""
    return bool(_read("DBTASKS_RUNNER", os.environ.get("DBTASKS_RUNNER") or "on", values.switch))


def _check_platform() -> None:
    if sys.platform == "win32":
        raise ImproperlyConfigured(
            "A runner inside a web server needs a POSIX system, such as Linux or macOS. Set "
            "DBTASKS_RUNNER=off, and run 'manage.py taskrunner' beside the server."
        )


def make_runner(options: dict[str, Any]) -> Runner:
    """Return a runner with these arguments.

    Raise CommandError if a value is not valid, or if there is no such backend or queue.
    """
    try:
        runner = Runner(**options)
    except ValueError as error:
        raise CommandError(str(error)) from error
    own = runner.options
    preflight.check_queues(preflight.one_backend(own.backend), own.queues, own.exclude_queues)
    return runner


def run(
    options: dict[str, Any],
    host: str,
    started: Callable[[Runner], None] = lambda runner: None,
    **listen: Any,
) -> tuple[Runner, int]:
    """Run a runner until it ends; return it with the exit code it would have as a command.

    `started` is called with the runner before it runs. The output is that of taskrunner, on
    standard output and error, at the verbosity of DBTASKS_VERBOSITY; its banner names `host`. Raise
    CommandError, ImproperlyConfigured or RunnerError if it cannot start.
    """
    levels = values.whole("verbosity", 0, 3)
    verbosity = _read("DBTASKS_VERBOSITY", os.environ.get("DBTASKS_VERBOSITY") or "1", levels)
    screen = Terminal(sys.stderr)
    report = Report(sys.stdout, screen, verbosity=verbosity)
    try:
        runner = make_runner(options)
        started(runner)
        backend = preflight.ready_backend(runner.options.backend)
        if warning := preflight.small_pool(backend.database, runner.options.workers):
            report.say(warning)
        with log_output(screen, verbosity):
            text = banner(runner, backend, stop=f"Runs in {host}, pid {os.getpid()}.")
            return runner, processes_run.run(runner, report, text, **listen)
    finally:
        connections.close_all()


class MasterSignals(Signals):
    """The signals of a process that is stopped by its master."""

    # When a signal came last, on the monotonic clock.
    _last = 0.0

    def wanted(self) -> list[signal.Signals]:
        wanted = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32":
            # The master sends it to reload, also under nohup.
            wanted.append(signal.SIGHUP)
        return wanted

    def take(self, number: int, why: str | None = None) -> None:
        now = time.monotonic()
        is_same, self._last = bool(self.received) and now - self._last < SIGNAL_DEBOUNCE, now
        if not is_same:
            super().take(number, why)


# One runner of a machine


def lock_path(backend: str) -> Path:
    """Return the file whose lock the one runner holds: DBTASKS_LOCK, or one for each project.

    By default it is in the folder for temporary files, and its name depends on the user, the
    settings module, BASE_DIR and the backend.
    """
    if chosen := os.environ.get("DBTASKS_LOCK"):
        return Path(chosen)
    from django.conf import settings

    key = [settings.SETTINGS_MODULE, getattr(settings, "BASE_DIR", os.getcwd()), backend]
    digest = sha256("\0".join(map(str, key)).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"dbtasks-{_user()}-{digest}.lock")


def _user() -> int | None:
    if sys.platform == "win32":
        return None
    return os.geteuid()


# Locks that this process holds. The operating system would grant them to the same process again,
# and would release them as soon as any descriptor of the file is closed.
_held: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Hold the lock of that file while the block runs; yield False if it was not free.

    The lock ends with the process, however that ends, and forked processes do not inherit it. Raise
    RunnerError if the file cannot be opened.
    """
    fd = _take(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            with _guard:
                os.close(fd)
                _held.discard(path)


def _take(path: Path) -> int | None:
    """Return the descriptor that holds the lock, None if the lock is not free."""
    with _guard:
        if path in _held:
            return None
        fd = _locked(path)
        if fd is not None:
            _held.add(path)
        return fd


def _locked(path: Path) -> int | None:
    """Open the file and lock it; return the descriptor, None if another process has the lock."""
    if sys.platform == "win32":  # Embedded refuses to start there
        return None
    import fcntl

    try:
        # Other users may write to that folder: do not follow a link, and do not block.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise RunnerError(
            f"The lock file {str(path)!r} cannot be opened: {error.strerror}. Set DBTASKS_LOCK "
            "to a file that this user may write."
        ) from error
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


class Embedded:
    """A runner in a thread of this process, while no other process of the machine hosts one.

    If the process that hosts it ends, another takes over within about a second. A runner that could
    not start, or has ended, is started again after ten seconds.
    """

    def __init__(self, host: str, most_grace: float = math.inf, **defaults: Any) -> None:
        """Raise ImproperlyConfigured or CommandError if an argument is not valid, or on Windows.

        The grace is at most `most_grace` seconds, because the server waits no longer.
        """
        _check_platform()
        self._host, self._options = host, configured(**{"grace": 30.0} | defaults)
        self._options["grace"] = min(self._options["grace"], most_grace)
        make_runner(self._options)
        self._path = lock_path(self._options.get("backend", "default"))
        self._stopping, self._lock = threading.Event(), threading.Lock()
        self._runner: Runner | None = None
        self._thread = threading.Thread(target=self._work, name="dbtasks-embedded", daemon=True)

    def start(self) -> None:
        """Start the thread, and return at once."""
        self._thread.start()

    def ask(self, hurry: bool = False) -> None:
        """Ask the runner to stop, with `hurry` without waiting for tasks, and return at once."""
        with self._lock:
            is_first = not self._stopping.is_set()
            self._stopping.set()
            if self._runner is None or not (is_first or hurry):
                return
            if is_first and (running := self._runner.running):
                grace = humanize_seconds(self._runner.options.grace)
                count = plural(running, "running task")
                logger.info("The server stops: waiting up to %s for %s", grace, count)
            self._runner.stop()

    def stop(self) -> None:
        """Stop the runner and wait for its end, within the grace; requeue what still runs then."""
        self.ask()
        self._thread.join(self._options["grace"] + STOP_MARGIN)
        if self._thread.is_alive():
            self.ask(hurry=True)
            self._thread.join(STOP_MARGIN)

    def _work(self) -> None:
        while not self._stopping.is_set():
            pause = RESTART_PAUSE
            try:
                with only_one(self._path) as is_ours:
                    if is_ours:
                        run(self._options, self._host, self._started)
                    else:
                        pause = LOCK_INTERVAL
            except (CommandError, ImproperlyConfigured, RunnerError) as error:
                logger.error(
                    "No runner in %s, trying again in %d s: %s", self._host, RESTART_PAUSE, error
                )
            except Exception:  # whatever a driver raises, the web server goes on
                logger.exception("The runner in %s ended; another starts soon", self._host)
            with self._lock:
                self._runner = None
            self._stopping.wait(pause)

    def _started(self, runner: Runner) -> None:
        with self._lock:
            self._runner = runner
            if self._stopping.is_set():
                runner.stop()
