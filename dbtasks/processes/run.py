"""A runner in this process, from its start to its exit code.

Owns the exit codes, and what a signal or a message of the supervisor does. Never runs tasks or
touches a row: it starts a Runner and asks it to stop.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self

from ..console.report import Report
from ..console.terminal import humanize_seconds, plural
from ..events import JOINED, STALLED
from ..runner.runner import Runner
from .link import SupervisorLink
from .signals import SIGNAL_DEBOUNCE, Debounce, signal_pipe, stop_signals

# Exit codes, beside 1 (could not start), 2 (invalid flag) and 128 + n (second signal n).
TASK_FAILED = 3
TASKS_RELEASED = 5
# An exhausted runner, or one of which a thread stands still, asks its supervisor, of whatever kind,
# to replace it.
REPLACE = 6
# Seconds that a runner of which a thread stands still has to end by itself.
STALL_GRACE = 2.0


class Signals:
    """Stops the runner on SIGTERM, SIGINT and SIGHUP, while the block runs in the main thread.

    The first signal asks the runner to finish running tasks, the second to leave now, the third
    ends the process. SIGQUIT only prints on stderr where each thread is.
    """

    # Seconds in which a repeated signal counts once.
    debounce = SIGNAL_DEBOUNCE

    def __init__(self, runner: Runner, report: Report) -> None:
        self._runner, self._report = runner, report
        self.received: list[int] = []
        self._debounce = Debounce(self.debounce)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        reading = self._exit.enter_context(signal_pipe(self.wanted(), blocking=True))
        threading.Thread(
            target=self._listen, args=[reading], name="dbtasks-signals", daemon=True
        ).start()
        if sys.platform != "win32":
            # This handler is written in C: it works even while a task holds the interpreter.
            faulthandler.register(signal.SIGQUIT, file=2)
            self._exit.callback(faulthandler.unregister, signal.SIGQUIT)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    def wanted(self) -> list[signal.Signals]:
        """Return the signals that stop the runner."""
        return stop_signals()

    def _listen(self, reading: int) -> None:
        wanted = self.wanted()
        try:
            while byte := os.read(reading, 1):
                # Other signals are written to the pipe as well.
                if byte[0] in wanted and not self._debounce.is_echo(byte[0]):
                    self.take(byte[0])
                    self._debounce.dealt_with(byte[0])
        finally:
            os.close(reading)

    def take(self, number: int, why: str | None = None) -> None:
        """Do what the signal does as the first, the second or a later one."""
        self.received.append(number)
        name = signal.Signals(number).name
        if len(self.received) > 2:
            # Rows that stay RUNNING are requeued when the worker is declared lost.
            os._exit(128 + number)
        self._runner.stop()
        text = (
            self._first() if len(self.received) == 1 else "leaving now; running tasks start again."
        )
        if not (self._report.is_replaced and self._report.is_brief and not self._runner.running):
            self._report.say(f"{why or name}: {text}", event="runner.stopping", signal=name)

    def _first(self) -> str:
        if not (running := self._runner.running):
            return "stopping; no task is running, and claimed tasks are requeued."
        grace = humanize_seconds(self._runner.options.grace)
        return (
            f"waiting up to {grace} for {plural(running, 'running task')}; tasks that have not "
            "started are requeued. A second signal leaves now."
        )


class SupervisedSignals(Signals):
    """The signals of a runner that has a supervisor, and the supervisor's messages.

    A signal may be sent to the supervisor alone, or to all processes at once, as a terminal and
    systemd do. So a signal that this process receives itself counts as the first, however often it
    comes. Only the supervisor reports a second one.
    """

    def __init__(self, runner: Runner, report: Report, link: SupervisorLink) -> None:
        super().__init__(runner, report)
        self._link = link
        self._lock = threading.Lock()
        runner.events.subscribe(JOINED, link.send_ready)

    def __enter__(self) -> Self:
        super().__enter__()
        threading.Thread(target=self._obey, name="dbtasks-link", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self._link.send("done")
        super().__exit__(*exc_info)

    def _obey(self) -> None:
        for what, *words in self._link.receive():
            if what == "gone":
                self._runner.declare_lost(words[0])
            else:
                self._reach(*words)
        self.take(signal.SIGTERM, "The supervisor is gone")

    def take(self, number: int, why: str | None = None) -> None:
        with self._lock:
            if not self.received:
                super().take(number, why)

    def _reach(self, level: int, number: int, why: str | None = None) -> None:
        """Count the signal until as many were received as the supervisor reports."""
        with self._lock:
            # The supervisor has said why.
            self._report.is_replaced = level == 1 and why is not None
            while len(self.received) < level:
                super().take(number, why)


def run(
    runner: Runner,
    report: Report,
    banner: str,
    listen: Callable[[Runner, Report], Signals] = Signals,
) -> int:
    """Run the runner until it ends or a signal stops it; return the exit code."""
    with listen(runner, report) as signals:
        report.start(runner, banner)
        try:
            runner.run()
        finally:
            report.close()
    if len(signals.received) > 1:
        return 128 + signals.received[1]
    if runner.exhausted:
        return REPLACE
    if runner.released:
        return TASKS_RELEASED
    return TASK_FAILED if runner.options.drain and report.failed else 0


def leave_if_stalled(runner: Runner) -> None:
    """End the process soon after a thread of the runner was found to stand still.

    The runner may not be able to end by itself. It does not beat any more, so that others rescue
    its rows.
    """

    def end(name: str) -> None:
        try:
            timer = threading.Timer(STALL_GRACE, os._exit, [REPLACE])
            timer.daemon = True
            timer.start()
        except RuntimeError:  # the system starts no more threads
            os._exit(REPLACE)

    runner.events.subscribe(STALLED, end)


def leave(code: int) -> None:
    """End the process with that code now, even if threads still run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
