"""What a runner's people read: a banner, a line per task, progress, a summary.

Owns every word a runner prints. Never changes how it runs: it is told what was settled, and may
lose a line, but must not slow a task.
"""

import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from queue import Empty, SimpleQueue
from textwrap import indent
from typing import Any

import django
from django.conf import settings
from django.db import DatabaseError, connections
from django.tasks import task_backends

from . import payload, store
from .backend import DatabaseBackend
from .execute import Attempt
from .finisher import Ended
from .models import FAILED, READY, SUCCESSFUL, ScheduledTask
from .runner import Runner
from .schedule import Duration
from .store import Outcome

# Lines a second that people can read, and lines that failures get beyond them.
LINES, FAILURES = 20, 10
# Seconds between two drawings of the bar, two progress lines, two sums of many tasks.
BAR_INTERVAL, PROGRESS_INTERVAL, SUM_INTERVAL = 0.2, 10.0, 1.0
# Due rows counted for the banner: nobody waits for the count of millions.
MANY = 10_000


_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, limit: int = 300) -> str:
    """Return the text fit for one line of a terminal: no control character, bounded length."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: Exception) -> str:
    """Return the exception's last line as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{plain(lines[0].strip()).rstrip('.')}."


def span(value: float | None) -> str:
    """Return seconds as people read them, such as ``3 ms``, ``1.2 s`` or ``1h5m``."""
    if value is None:
        return "–"
    value = max(0.0, value)
    if value < 1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return str(Duration(round(value)))


def describe(ended: Ended) -> dict[str, Any]:
    """Return what is to be said of a settled attempt: times in seconds, moments in UTC."""
    attempt, outcome = ended
    claim, job = attempt.claim, attempt.job
    began = outcome.last_attempted_at
    due = store.moment(job.db, claim.run_after) or store.moment(job.db, claim.enqueued_at)
    error, message = _failure(outcome)
    return {
        "event": _event(attempt, outcome),
        "time": _now(),
        "task_id": attempt.describe()["id"],
        "task": claim.task_path,
        "queue": claim.queue_name,
        "backend": job.alias,
        "worker_id": job.worker_id,
        "attempt": outcome.attempt,
        "status": outcome.status,
        "wait_s": began and due and round((began - due).total_seconds(), 6),
        "duration_s": outcome.finished_at
        and round((outcome.finished_at - began).total_seconds(), 6),
        "exception": error,
        "message": message,
    }


_EVENTS = {SUCCESSFUL: "task.finished", FAILED: "task.failed", READY: "task.released"}
_MARKS = {
    "task.finished": "ok",
    "task.failed": "FAIL",
    "task.released": "back",
    "task.retried": "next",
}


def _event(attempt: Attempt, outcome: Outcome) -> str:
    """Return what happened: a READY row was given up, or is tried again after an error."""
    is_retry = outcome.status == READY and attempt.error is not None
    return "task.retried" if is_retry else _EVENTS[outcome.status]


def _failure(outcome: Outcome) -> tuple[str | None, str | None]:
    """Return the class of the outcome's error and the last line of its message, if it has one."""
    if outcome.status == SUCCESSFUL or not outcome.errors:
        return None, None
    path, text = payload.load(outcome.errors)[-1]
    last = (text.strip().splitlines() or [""])[-1]
    name = path.rpartition(".")[2]
    # A traceback names the class before the message, unless that has several lines.
    for prefix in (path, name):
        last = last.removeprefix(f"{prefix}: ") if last != prefix else ""
    return name, last


def _line(fields: dict[str, Any]) -> str:
    text = (
        f"{_MARKS[fields['event']]:4} {fields['task_id'][-12:]} {plain(fields['task'], 120)}  "
        f"queue={plain(fields['queue'])} attempt={fields['attempt']} {fields['status']} "
        f"waited {span(fields['wait_s'])}"
    )
    if fields["duration_s"] is not None:
        text += f", took {span(fields['duration_s'])}"
    if fields["exception"]:
        message = f": {plain(fields['message'])}" if fields["message"] else ""
        text += f"  {plain(fields['exception'])}{message}"
    return text


def _which(process: int | None) -> dict[str, int]:
    """Return what tells a program which of several processes speaks."""
    return {} if process is None else {"process": process}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def plural(count: int, noun: str) -> str:
    """Return the count with its noun, such as ``1 task`` or ``1,200 tasks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Screen:
    """A stream of lines with, on a terminal, one line below them that is drawn over and over.

    Any thread may write; `prefix` goes before each line. A stream that is gone is no reason to
    stop working.
    """

    def __init__(self, stream: Any, prefix: str = "") -> None:
        self._stream, self.prefix = stream, prefix
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = threading.RLock()
        self._bar = ""

    def isatty(self) -> bool:
        return bool(getattr(self._stream, "isatty", bool)())

    def can(self, text: str) -> bool:
        """Tell whether the stream's encoding has all of the characters."""
        try:
            text.encode(self._encoding)
        except UnicodeError:
            return False
        return True

    def write(self, text: str) -> int:
        """Write the text, whole lines of it, above the bar."""
        shown = indent(text, self.prefix, bool) if self.prefix else text
        with self._lock:
            self._put(f"{self._erase()}{shown}{self._bar}")
        return len(text)

    def line(self, text: str) -> None:
        """Write one line above the bar."""
        self.write(f"{text}\n")

    def bar(self, text: str) -> None:
        """Draw that line below all others; an empty one takes it away."""
        with self._lock:
            erase, self._bar = self._erase(), text
            self._put(f"{erase}{text}")

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def _erase(self) -> str:
        return "\r\x1b[K" if self._bar else ""

    def _put(self, text: str) -> None:
        if not self.can(text):
            text = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
        try:
            # Django's wrapper would end each text with a newline.
            getattr(self._stream, "_out", self._stream).write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal, or whoever read the pipe, has gone
            pass


class _Formatter(logging.Formatter):
    """One line a record, its traceback below; or one JSON object."""

    def __init__(self, as_json: bool, process: int | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._as_json, self._process = as_json, process

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._as_json:
            return "\n".join(plain(line, 2000) for line in text.splitlines())
        return json.dumps(
            {
                "event": "log",
                "time": _now(),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                "traceback": record.exc_text,
                **_which(self._process),
            }
        )


@contextmanager
def log_output(
    screen: Screen, verbosity: int, as_json: bool = False, process: int | None = None
) -> Iterator[None]:
    """Show what the package logs, and keep the bar whole, where the project says nothing of it.

    Loggers are left as they were found.
    """
    ours, tasks = logging.getLogger("dbtasks"), logging.getLogger("django.tasks")
    levels = ours.level, tasks.level
    handler: logging.Handler = logging.NullHandler()
    if verbosity:
        handler = logging.StreamHandler(screen)
        handler.setFormatter(_Formatter(as_json, process))
    silent = not ours.handlers and not logging.getLogger().handlers
    if silent:
        ours.addHandler(handler)
        if not ours.level:
            ours.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
    if not settings.LOGGING and not tasks.level:
        # Django's console, which exists in DEBUG, would say each line of ours twice again.
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


def _redirected(screen: Screen) -> list[tuple[Any, Any]]:
    """Make other handlers on standard error write above the bar; return them with their stream."""
    found: list[tuple[Any, Any]] = []
    for name in ("", "django", "django.tasks", "dbtasks"):
        found += [
            (handler, handler.setStream(screen))
            for handler in logging.getLogger(name).handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
    return found


class Report:
    """Tells what a runner does: a banner, a line per task, progress, a summary.

    Called with each settled batch, in the finisher's thread, it only counts and picks; formatting
    and writing happen in a thread of its own, so that a slow terminal slows no task. `out` takes
    results, `err` what is said on the way. `process` is this one's number if there are several.
    """

    def __init__(
        self,
        out: Any,
        err: Screen,
        *,
        verbosity: int = 1,
        as_json: bool = False,
        style: Any = None,
        process: int | None = None,
    ) -> None:
        self.out, self.err, self._process = Screen(out, err.prefix), err, process
        self._verbosity, self._as_json, self._style = verbosity, as_json, style
        # How attempts ended, by the status of their row. Written by the finisher's thread only.
        self.statuses: Counter[str] = Counter()
        self._lines: SimpleQueue[Ended | None] = SimpleQueue()
        self._room = self._failure_room = 0
        self._runner: Runner | None = None
        self._banner = ""
        self._thread = threading.Thread(target=self._work, name="dbtasks-report", daemon=True)
        self._ready = False
        self._began = self._left_at = self._left_for = 0.0
        self._left: int | None = None
        self._left_done = 0

    @property
    def failed(self) -> int:
        """How many tasks have FAILED."""
        return self.statuses[FAILED]

    @property
    def done(self) -> int:
        """How many tasks have finished, well or not."""
        return self.statuses[SUCCESSFUL] + self.statuses[FAILED]

    # In the finisher's thread

    def __call__(self, batch: Sequence[Ended]) -> None:
        """Count the batch and pick what is worth a line."""
        self.statuses.update([outcome.status for _, outcome in batch])
        if room := self._room:
            self._room = room - min(room, len(batch))
            for ended in batch[:room]:
                self._lines.put(ended)
            batch = batch[room:]
        if batch and (failure_room := self._failure_room):
            odd = [ended for ended in batch if ended[1].status != SUCCESSFUL][:failure_room]
            self._failure_room = failure_room - len(odd)
            for ended in odd:
                self._lines.put(ended)

    # In the command's thread

    def start(self, runner: Runner, banner: str) -> None:
        """Begin to tell, once the runner is ready; ``{worker_id}`` in the banner is its own."""
        self._runner, self._banner, self._began = runner, banner, time.monotonic()
        self._drains = runner.drain
        # Several processes would draw over each other's.
        draws = self._process is None and self.err.isatty()
        self._shows_bar = runner.drain and not self._as_json and draws
        self._sum_at = self._began + SUM_INTERVAL
        self._progress_at = self._began + PROGRESS_INTERVAL
        self._open_window()
        if self._verbosity:
            self._thread.start()

    def say(self, text: str, **fields: Any) -> None:
        """Tell one thing; as JSON, the fields with it."""
        if not self._verbosity:
            return
        if self._as_json:
            self._object({"time": _now(), **fields, "text": text})
        else:
            self.err.line(text)

    def close(self) -> None:
        """Tell what is left to tell, and sum up if the runner has run."""
        if not self._verbosity:
            return
        self._lines.put(None)
        # A terminal that takes nothing must not keep the process.
        self._thread.join(2.0)
        if self._ready:
            self._summary(time.monotonic() - self._began)

    def _summary(self, elapsed: float) -> None:
        back = 0 if self._runner is None else self._runner.abandoned
        retried = self.statuses[READY] - back
        if self._as_json:
            self._object(
                {
                    "event": "runner.stopped",
                    "time": _now(),
                    "done": self.done,
                    "successful": self.statuses[SUCCESSFUL],
                    "failed": self.failed,
                    "retried": retried,
                    "given_back": back,
                    "duration_s": round(elapsed, 6),
                }
            )
            return
        text = (
            f"Ran {plural(self.done, 'task')} in {span(elapsed)} "
            f"({self.done / max(elapsed, 0.001):,.0f}/s): "
            f"{self.statuses[SUCCESSFUL]:,} successful, {self.failed:,} failed."
        )
        if retried:
            text += f" {plural(retried, 'attempt')} to be followed by another."
        if back:
            text += f" {plural(back, 'running task')} given back, to be started again."
        self.out.line(text)

    def _object(self, fields: dict[str, Any]) -> None:
        if self._process is not None and self._runner is not None:
            fields = {**fields, **_which(self._process), "worker_id": self._runner.worker_id}
        self.out.line(json.dumps(fields))

    # In the report's thread

    def _work(self) -> None:
        assert self._runner is not None
        try:
            if not self._wait_until_ready(self._runner):
                return
            self._ready = True
            self.say(
                self._banner.format(worker_id=self._runner.worker_id),
                event="runner.started",
                worker_id=self._runner.worker_id,
            )
            while self._tell():
                pass
            self._close_window()
        finally:
            self.err.bar("")
            connections.close_all()

    def _wait_until_ready(self, runner: Runner) -> bool:
        """Return whether the runner has started; it may have ended again already."""
        while not runner.ready.wait(0.02):
            if not self._lines.empty():
                return runner.finished.is_set()
        return True

    def _tell(self) -> bool:
        """Tell what there is to tell for a moment; return False when all is told."""
        now = time.monotonic()
        if now >= self._sum_at:
            self._sum_at = now + SUM_INTERVAL
            self._close_window()
        if self._shows_bar:
            self.err.bar(self._progress(bar=True))
        elif self._drains and now >= self._progress_at:
            self._progress_at = now + PROGRESS_INTERVAL
            self._say_progress()
        until = now + (BAR_INTERVAL if self._shows_bar else SUM_INTERVAL)
        try:
            while (left := until - time.monotonic()) > 0:
                ended = self._lines.get(timeout=left)
                if ended is None:
                    return False
                self._show(ended)
        except Empty:
            pass
        return True

    def _show(self, ended: Ended) -> None:
        fields = describe(ended)
        self._shown += 1
        if self._as_json:
            self._object(fields)
            return
        text = _line(fields)
        if self._style is not None and fields["status"] == FAILED:
            text = self._style.ERROR(text)
        self.err.line(f"{time.strftime('%H:%M:%S')} {text}")

    def _open_window(self) -> None:
        """Begin a second: so many lines may be shown in it."""
        self._window_done, self._window_failed = self.statuses.total(), self.failed
        self._shown = 0
        self._room = 0 if self._shows_bar and self._verbosity < 2 else LINES
        self._failure_room = FAILURES

    def _close_window(self) -> None:
        """Sum up the second if it had more tasks than lines."""
        done = self.statuses.total() - self._window_done
        failed = self.failed - self._window_failed
        if done > self._shown and not self._shows_bar:
            text = f"{plural(done, 'task')} in the last second, {failed:,} failed"
            if self._as_json:
                self.say(text, event="tasks.finished", count=done, failed=failed)
            else:
                self.say(f"{time.strftime('%H:%M:%S')} {text}")
        self._open_window()
        if done > LINES:
            # The next second will be like this one: its sum says more than its first lines.
            self._room = 0

    # Progress

    def _say_progress(self) -> None:
        self.say(
            f"{time.strftime('%H:%M:%S')} {self._progress()}",
            event="runner.progress",
            done=self.done,
            failed=self.failed,
            left=self._left_now(),
        )

    def _progress(self, bar: bool = False) -> str:
        """Return how far the drain is, as one line that fits the terminal."""
        assert self._runner is not None
        left, running = self._left_now(), self._runner.running
        text = f"done {self.done:,} · failed {self.failed:,} · running {running:,}"
        text += "" if left is None else f" · left {left:,}"
        if not self.err.can(text):
            text = text.replace("·", "|")
        if not bar:
            return text
        columns = shutil.get_terminal_size().columns
        width = min(40, columns - len(text) - 2)
        if left is not None and width >= 10:
            share = self.done / max(1, self.done + running + left)
            text = f"{_bar(share, width, '█░' if self.err.can('█░') else '#-')} {text}"
        return text[: columns - 1]

    def _left_now(self) -> int | None:
        """Return about how many rows are due: counted now and then, less what was done since.

        A count may take long where millions are due, so it gets at most a twentieth of the time.
        """
        now = time.monotonic()
        if now >= self._left_at + max(SUM_INTERVAL, 20 * self._left_for):
            done = self.done
            self._left = self._count_due()
            self._left_done, self._left_at = done, time.monotonic()
            self._left_for = self._left_at - now
        return self._left and max(0, self._left - (self.done - self._left_done))

    def _count_due(self) -> int | None:
        assert self._runner is not None
        backend: Any = task_backends[self._runner.backend]
        try:
            return int(due_rows(backend, self._runner.queues).count())
        except DatabaseError:  # the runner says so itself, and tries again
            connections[backend.database].close()
            return None


def _bar(share: float, width: int, characters: str) -> str:
    full = min(width, int(share * width))
    return characters[0] * full + characters[1] * (width - full)


def due_rows(backend: DatabaseBackend, queues: Sequence[str] | None) -> Any:
    """Return the rows that a runner of the backend may claim now, in those queues or in all."""
    rows = ScheduledTask.objects.using(backend.database).due().filter(backend=backend.alias)
    return rows if queues is None else rows.filter(queue_name__in=queues)


def banner(
    runner: Runner, backend: DatabaseBackend, processes: int = 0, stop: str | None = None
) -> str:
    """Return what a runner says of itself before it starts, with ``{worker_id}`` left open.

    With `processes`, what the one that supervises so many says of all, with nothing left open.
    `stop` is the sentence on how it ends, where that is not Ctrl-C.
    """
    connection = connections[backend.database]
    queues = runner.queues or sorted(backend.queues)
    due = due_rows(backend, runner.queues)[: MANY + 1].count()
    lines = [
        f"dbtasks {_version()}, Django {django.__version__}, Python {sys.version.split()[0]}",
        f"Backend {backend.alias!r} in {connection.display_name} "
        f"{str(connection.settings_dict['NAME'])!r}, queues: {', '.join(queues) or 'all'}",
        f"{f'{processes} processes of ' if processes > 1 else ''}"
        f"{plural(runner.workers, 'thread')}, looking every {span(runner.loop_delay)} at most, "
        f"{span(runner.grace)} of grace",
        f"{f'More than {MANY:,} tasks' if due > MANY else plural(due, 'task').capitalize()} due",
    ]
    text = "\n".join(plain(line) for line in lines)
    stop = stop or f"{'Drains the queue; stop' if runner.drain else 'Stop'} with Ctrl-C."
    if processes:
        return f"{text}\nSupervisor with pid {os.getpid()}. {stop}"
    text = text.replace("{", "{{").replace("}", "}}")
    return f"{text}\nWorker {{worker_id}}. {stop}"


def _version() -> str:
    try:
        return version("dbtasks")
    except PackageNotFoundError:  # run from a source tree
        return "(source)"
