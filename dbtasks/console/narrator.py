"""The thread that prints what a runner does.

Owns which tasks get a line, and the summaries of the others. Never slows a task down: it may drop
lines, and the runner does not wait for it.
"""

import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ..base.result import FAILED, SUCCESSFUL
from ..db.service import Service
from ..execution.settling import Ended
from ..runner.runner import Runner
from .events import as_line, describe, traceback_of
from .progress import Progress
from .terminal import plural

if TYPE_CHECKING:
    from .report import Report

# Lines per second that people can read.
LINES = 20
# Further lines per second, for failures only.
FAILURE_LINES = 10
# Seconds between two drawings of the bar.
BAR_INTERVAL = 0.2
# Seconds between two lines of progress.
PROGRESS_INTERVAL = 10.0
# Seconds between two summaries of many tasks.
SUM_INTERVAL = 1.0


class Narrator(Service):
    """Prints the banner once the runner is ready, then a line for each task, or summaries."""

    def __init__(
        self, report: "Report", runner: Runner, progress: Progress | None, banner: str
    ) -> None:
        super().__init__("report")
        self._report, self._runner, self._banner = report, runner, banner
        self._progress, self._shows_bar = progress, progress is not None and report.can_draw
        self._lines: SimpleQueue[Ended | None] = SimpleQueue()
        # Whether the runner was ready.
        self.has_begun = False
        now = time.monotonic()
        self._sum_at, self._progress_at = now + SUM_INTERVAL, now + PROGRESS_INTERVAL
        # How many lines may be written in this second; how many were; the counts at its start.
        self._room = self._failure_room = self._shown = 0
        self._window_done = self._window_failed = 0
        self._open_window()

    def pick(self, batch: Sequence[Ended]) -> None:
        """Queue the attempts of the batch that get a line. Runs in the thread that settles."""
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

    def finish(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._lines.put(None)
        # A terminal that accepts no output must not keep the process from ending.
        self._thread.join(timeout)

    def work(self) -> None:
        try:
            if not self._wait_until_ready():
                return
            self.has_begun = True
            worker_id = self._runner.worker_id
            text = self._banner.format(worker_id=worker_id)
            if text:
                self._report.say(text, event="runner.started", worker_id=worker_id)
            while self._write():
                pass
            self._close_window()
        finally:
            self._report.err.bar("")

    def _wait_until_ready(self) -> bool:
        """Wait for the runner; return whether it has started. It may already have ended again."""
        while not self._runner.ready.wait(0.02):
            if not self._lines.empty():
                return self._runner.finished.is_set()
        return True

    def _write(self) -> bool:
        """Write the lines of a short time; return False after the last one."""
        now = time.monotonic()
        if now >= self._sum_at:
            self._sum_at = now + SUM_INTERVAL
            self._close_window()
        self._write_progress(now)
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

    def _write_progress(self, now: float) -> None:
        report = self._report
        if self._progress is None:
            return
        if self._shows_bar:
            report.err.bar(self._progress.bar(report.done, report.failed))
        elif now >= self._progress_at:
            self._progress_at = now + PROGRESS_INTERVAL
            report.say(
                f"{time.strftime('%H:%M:%S')} {self._progress.line(report.done, report.failed)}",
                event="runner.progress",
                done=report.done,
                failed=report.failed,
                left=self._progress.left(report.done),
            )

    def _show(self, ended: Ended) -> None:
        fields = describe(ended)
        self._shown += 1
        line = f"{time.strftime('%H:%M:%S')} {self._report.styled(as_line(fields), fields)}"
        if self._report.shows_tracebacks and ended[1].status == FAILED:
            line += f"\n{traceback_of(ended[1])}"
        self._report.write(line, fields)

    def _open_window(self) -> None:
        """Begin a second and set how many lines may be written in it."""
        report = self._report
        self._window_done, self._window_failed = report.statuses.total(), report.failed
        self._shown = 0
        self._room = 0 if self._shows_bar and not report.is_verbose else LINES
        self._failure_room = FAILURE_LINES

    def _close_window(self) -> None:
        """Write a summary of the second if it had more tasks than lines."""
        report = self._report
        done = report.statuses.total() - self._window_done
        failed = report.statuses[FAILED] - self._window_failed
        if done > self._shown and not self._shows_bar:
            text = f"{plural(done, 'task')} in the last second, {failed:,} failed"
            report.say(
                text if report.as_json else f"{time.strftime('%H:%M:%S')} {text}",
                event="tasks.finished",
                count=done,
                failed=failed,
            )
        self._open_window()
        if done > LINES:
            # The next second is likely to be as busy: its summary says more than its first lines.
            self._room = 0
