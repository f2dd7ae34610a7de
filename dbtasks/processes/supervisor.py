"""``taskrunner --processes N``: starts, watches and stops runners in processes of their own.

Owns the processes: when one starts, the messages to it, and the common exit code. Never opens a
database connection or forks a loaded interpreter: each process is started from the command line.
When one ends, the others receive a message, so that they requeue its rows.
"""

import math
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from ..console.terminal import humanize_seconds
from ..exceptions import RunnerError
from .child import Child, exit_reason
from .run import REPLACE, TASK_FAILED, TASKS_RELEASED, leave
from .signals import Debounce, child_signals, signal_pipe, stop_signals

# Seconds after the grace in which a runner may write outcomes and end.
MARGIN = 10.0
# Seconds before a process whose database is not ready is started again.
RETRY_PAUSE = 3.0


def worst_exit_code(codes: Iterable[int]) -> int:
    """Return the worst exit code: 128 + n, then 5, then 3, then 0.

    Any other code counts as 5, because that process may have left tasks that start again.
    """
    known = (0, TASK_FAILED)
    return max((c if c in known or c > 128 else TASKS_RELEASED for c in codes), default=0)


class Supervisor:
    """Keeps the processes `children` running until it is asked to stop.

    With `ends`, a runner that stops by itself has done its work and is not replaced. `grace` is the
    grace of the runners, in seconds. `say` is called with a text for people, and with fields for
    programs. `wait` is for how many seconds processes may wait for their database before the first
    of them is ready. Everything happens in the main thread.
    """

    def __init__(
        self,
        children: list[Child],
        *,
        grace: float,
        ends: bool,
        say: Callable[..., None],
        wait: float = 0.0,
    ) -> None:
        self._children, self._grace, self._ends, self._say = children, grace, ends, say
        self._alive: list[Child] = []
        self._codes: list[int] = []
        self._received: list[int] = []
        self._debounce = Debounce()
        # On the monotonic clock; and the last message about what a process waits for.
        self._wait_until, self._waits_for = time.monotonic() + wait, ""
        # The last workers that have ended. Each new process receives them, because all processes
        # may die before one of them has received a message.
        self._gone: deque[str] = deque(maxlen=2 * len(children))
        # When processes that still run are killed, on the monotonic clock; None before a stop.
        self._deadline: float | None = None
        self._refusal = ""
        self._selector = selectors.DefaultSelector()
        # The descriptor of the signal pipe, from run() on.
        self._pipe = -1

    def run(self, banner: str) -> int:
        """Print the banner and run the processes until all have ended; return the exit code.

        Raise RunnerError if one of them cannot start, after the others have stopped.
        """
        with self._selector, signal_pipe(child_signals() + stop_signals()) as self._pipe:
            self._selector.register(self._pipe, selectors.EVENT_READ, self._take)
            self._say(
                banner, event="supervisor.started", pid=os.getpid(), processes=len(self._children)
            )
            while self._alive or self._waiting():
                self._start_due()
                for key, _ in self._selector.select(self._until_next()):
                    key.data()
                self._reap()
        if self._refusal:
            raise RunnerError(self._refusal)
        if len(self._received) > 1:
            return 128 + self._received[1]
        return worst_exit_code(self._codes)

    def _waiting(self) -> list[Child]:
        return [child for child in self._children if child.start_at is not None]

    def _until_next(self) -> float | None:
        """Return the seconds until the next start or kill; None if there will be none."""
        moments = [child.start_at or 0.0 for child in self._waiting()]
        if self._deadline is not None:
            moments.append(self._deadline)
        first = min(moments, default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    # Starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._waiting():
            if child.start_at is not None and child.start_at <= now:
                self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:
            child.why = f"No process can be started: {error}."
            self._replace(child, 1)
            return
        self._alive.append(child)
        self._selector.register(child, selectors.EVENT_READ, partial(self._hear, child))

    def _hear(self, child: Child) -> None:
        for what, *words in child.receive():
            if what == "ready":
                child.worker_id, child.is_ready = words[0], True
                child.was_ready = True
                for worker_id in self._gone:
                    child.send("gone", worker_id)
            elif what == "failed":
                child.why, child.may_start_later = words[0], words[1]
            else:
                child.is_done = True
        if child.is_silent:
            self._hang_up(child)

    def _hang_up(self, child: Child) -> None:
        self._selector.unregister(child)
        child.hang_up()

    # Ending

    def _reap(self) -> None:
        ended = [(c, c.process.poll()) for c in self._alive if c.process is not None]
        # Read after poll(): a stop that came before the processes ended keeps them from being
        # replaced.
        self._take()
        for child, code in ended:
            if code is not None:
                self._alive.remove(child)
                self._ended(child, code)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            for child in self._late():
                self._say(
                    f"{child} has not stopped in time, and is killed.", event="process.killed"
                )
                child.kill()

    def _late(self) -> list[Child]:
        """Return the processes that should have ended by now."""
        return self._alive

    def _ended(self, child: Child, code: int) -> None:
        if not child.is_silent:
            self._hear(child)
        if not child.is_silent:  # a process forked by a task holds the other end too
            self._hang_up(child)
        if child.is_ready and child.worker_id:
            self._gone.append(child.worker_id)
            for other in self._alive:
                if other.is_ready:
                    other.send("gone", child.worker_id)
        if not (self._is_stopping or (self._ends and child.is_done and code != REPLACE)):
            self._replace(child, code)
        elif child.is_ready:
            self._codes.append(code if child.is_done else TASKS_RELEASED)

    def _replace(self, child: Child, code: int) -> None:
        """Start another one, now or after a pause; stop all if this one was never ready."""
        ended = exit_reason(child, code)
        if not child.was_ready and child.may_start_later and time.monotonic() < self._wait_until:
            self._start_later(child)
            return
        if not child.was_ready and code >= 0:
            self._refusal = child.why or f"{child} {ended} before it was ready; all have stopped."
            self._stop(1, signal.SIGTERM)
            return
        pause = 0.0
        if code != REPLACE or not child.is_ready:
            pause = child.backoff.after(time.monotonic() - child.started_at)
        child.start_at = time.monotonic() + pause
        when = f"in {humanize_seconds(pause)}" if pause else "now"
        self._say(
            f"{child} {ended}; another starts {when}.",
            event="process.ended",
            process=child.number,
            pid=child.process.pid if child.process else None,
            exit_code=code,
            pause_s=pause,
        )

    def _start_later(self, child: Child) -> None:
        """Start another one soon, because this one waits for its database. Say so once."""
        child.start_at = time.monotonic() + RETRY_PAUSE
        if child.why != self._waits_for:
            self._waits_for = child.why
            self._say(
                f"{child.name} waits, and tries again every {RETRY_PAUSE:g} s: {child.why}",
                event="process.waiting",
                process=child.number,
            )

    # Stopping

    @property
    def _is_stopping(self) -> bool:
        return bool(self._received or self._refusal)

    def _take(self) -> None:
        try:
            numbers = os.read(self._pipe, 512)
        except BlockingIOError:
            return
        # Other signals, such as SIGCHLD, only wake this process.
        for number in [n for n in numbers if n in stop_signals()]:
            if not self._debounce.is_echo(number):
                self._obey(signal.Signals(number))
                self._debounce.dealt_with(number)

    def _obey(self, number: signal.Signals) -> None:
        self._received.append(number)
        level = len(self._received)
        if level > 2:
            for child in self._alive:
                child.kill()
            leave(128 + number)
        what = "stopping all processes" if level == 1 else "all processes leave now"
        self._say(f"{number.name}: {what}.", event="supervisor.stopping", signal=number.name)
        self._stop(level, number)

    def _stop(self, level: int, number: int) -> None:
        self._deadline = time.monotonic() + MARGIN + (self._grace if level == 1 else 0.0)
        for child in self._children:
            child.start_at = None
        for child in self._alive:
            child.send("stop", level, number)
