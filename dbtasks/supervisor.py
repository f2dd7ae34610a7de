"""``taskrunner --processes N``: runners in processes of their own, started, watched and stopped.

Owns the processes: when one starts, what it is told, and the exit code that theirs make together.
Never opens a connection or copies a loaded interpreter: each process starts anew from the command
line, and what a dead one held is given back by another, which is told of it.
"""

import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Self

from .cli import ABANDONED, REPLACE, TASK_FAILED, Signals, leave, noted
from .exceptions import RunnerError
from .leash import ENVIRONMENT, Leash, line, stop_signals
from .report import Report, span
from .runner import Runner

# Seconds beyond the grace that a runner may take to settle and to leave.
MARGIN = 10.0
# Seconds that a process must live for its death to be an accident, and the longest pause before a
# process that keeps dying is started again.
HEALTHY, LONGEST_PAUSE = 60.0, 30.0


class Backoff:
    """The pauses before a process that died is started again: 0, 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived: float) -> float:
        """Return the seconds to wait, now that it has died after so many seconds."""
        pause = 0.0 if lived >= HEALTHY else self._next
        self._next = min(LONGEST_PAUSE, max(1.0, pause * 2))
        return pause


def worst(codes: Iterable[int]) -> int:
    """Return the exit code that says most: 128 + n, then 5, then 3, then 0.

    A process that did not end by itself has left tasks to be started again, which is 5.
    """
    known = (0, TASK_FAILED)
    return max((c if c in known or c > 128 else ABANDONED for c in codes), default=0)


def command_line() -> list[str]:
    """Return the command line of this process, however it was started, to start it once more."""
    return [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]


# In the supervisor


class Child:
    """One of the processes through all its lives, as the supervisor sees it.

    `name` is what people call it, `command` what starts it; one that `reloads` need not end for new
    code to run, because it starts processes of its own.
    """

    def __init__(
        self, number: int, name: str, command: list[str], *, reloads: bool = False
    ) -> None:
        self.number, self.name, self.command, self.reloads = number, name, command, reloads
        self.backoff = Backoff()
        # Whether it was ready in any of its lives.
        self.was_ready = False
        # When to start it, on the monotonic clock; None while it runs and when it has ended for
        # good; infinity while it waits for something else.
        self.start_at: float | None = 0.0
        # The runner in it, or the last one that was; "" before the first, and where none ever is.
        self.worker_id = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        pid = f" (pid {self.process.pid})" if self.process else ""
        return f"{self.name}{pid}"

    def start(self) -> None:
        """Start it; raise OSError if there is no room for another process."""
        self.start_at, self.started_at = None, time.monotonic()
        self.is_ready = self.is_done = self.is_silent = False
        self.why, self._heard = "", b""
        self.link, theirs = socket.socketpair()
        self.link.setblocking(False)
        with theirs:
            try:
                self.process = _spawn(self.command, self.number, theirs.fileno())
            except OSError:
                self.link.close()
                raise

    def tell(self, *words: Any) -> None:
        """Tell it something, unless it has gone or does not listen."""
        with suppress(OSError):
            self.link.send(line(words))

    def hear(self) -> list[list[Any]]:
        """Return what it has said since; it is silent once it will say no more."""
        try:
            while data := self.link.recv(65536):
                self._heard += data
            self.is_silent = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_silent = True
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]


def alike(count: int, command: list[str]) -> list[Child]:
    """Return so many processes of one command."""
    return [Child(number, f"Process #{number}", command) for number in range(1, count + 1)]


def _spawn(command: list[str], number: int, link: int) -> subprocess.Popen[bytes]:
    """Start that command with the descriptor of its socket; return the process."""
    # Held back until the runner can take them: it would die of a signal while it starts.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
    try:
        return subprocess.Popen(
            command,
            env=os.environ | {ENVIRONMENT: f"{number} {link}"},
            stdin=subprocess.DEVNULL,
            pass_fds=[link],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Supervisor:
    """Keeps the processes `children` running until told to stop.

    With `ends` a runner that stops by itself has done what was asked, and no other takes its
    place. `grace` is what the runners get, in seconds. `say` is called with what people should
    read, and with fields for programs. All of it happens in the main thread.
    """

    def __init__(
        self,
        children: list[Child],
        *,
        grace: float,
        ends: bool,
        say: Callable[..., None],
    ) -> None:
        self._children, self._grace, self._ends, self._say = children, grace, ends, say
        self._alive: list[Child] = []
        self._codes: list[int] = []
        self._received: list[int] = []
        # The last workers that have gone: all processes may die before one of them was told.
        self._gone: deque[str] = deque(maxlen=2 * len(children))
        # When those that still run are killed, on the monotonic clock; None before the first stop.
        self._deadline: float | None = None
        self._refusal = ""
        self._selector = selectors.DefaultSelector()

    def run(self, banner: str) -> int:
        """Say the banner, run the processes, and return the exit code once all have ended for good.

        Raise RunnerError if one of them cannot start, when the others have stopped.
        """
        with self._selector, _signal_pipe([signal.SIGCHLD, *stop_signals()]) as self._pipe:
            self._selector.register(self._pipe, selectors.EVENT_READ, self._take)
            self._say(
                banner, event="supervisor.started", pid=os.getpid(), processes=len(self._children)
            )
            while self._alive or self._waiting():
                self._start_due()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._reap()
        if self._refusal:
            raise RunnerError(self._refusal)
        if len(self._received) > 1:
            return 128 + self._received[1]
        return worst(self._codes)

    def _waiting(self) -> list[Child]:
        return [child for child in self._children if child.start_at is not None]

    def _patience(self) -> float | None:
        """Return the seconds until there is something to do unasked; None for ever."""
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
        self._selector.register(child.link, selectors.EVENT_READ, partial(self._hear, child))

    def _hear(self, child: Child) -> None:
        for what, *words in child.hear():
            if what == "ready":
                child.worker_id, child.is_ready = words[0], True
                child.was_ready = True
                for worker_id in self._gone:
                    child.tell("gone", worker_id)
            elif what == "failed":
                child.why = words[0]
            else:
                child.is_done = True
        if child.is_silent:
            self._hang_up(child)

    def _hang_up(self, child: Child) -> None:
        self._selector.unregister(child.link)
        child.link.close()

    # Ending

    def _reap(self) -> None:
        ended = [(c, c.process.poll()) for c in self._alive if c.process is not None]
        # A stop that was sent before they ended has arrived by now: nobody takes their place.
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
                self._kill(child)

    def _late(self) -> list[Child]:
        """Return those that should have ended by now."""
        return self._alive

    def _ended(self, child: Child, code: int) -> None:
        if not child.is_silent:
            self._hear(child)
        if not child.is_silent:  # a process that some task has forked has the other end as well
            self._hang_up(child)
        if child.is_ready and child.worker_id:
            self._gone.append(child.worker_id)
            for other in self._alive:
                if other.is_ready:
                    other.tell("gone", child.worker_id)
        if not (self._is_stopping or (self._ends and child.is_done and code != REPLACE)):
            self._replace(child, code)
        elif child.is_ready:
            self._codes.append(code if child.is_done else ABANDONED)

    def _replace(self, child: Child, code: int) -> None:
        """Start another in its place, soon or later; stop all if none could ever start there."""
        ended = how(child, code)
        if not child.was_ready and code >= 0:
            self._refusal = child.why or f"{child} {ended} before it was ready; all have stopped."
            self._stop(1, signal.SIGTERM)
            return
        pause = 0.0
        if code != REPLACE or not child.is_ready:
            pause = child.backoff.after(time.monotonic() - child.started_at)
        child.start_at = time.monotonic() + pause
        self._say(
            f"{child} {ended}; another starts {f'in {span(pause)}' if pause else 'now'}.",
            event="process.ended",
            process=child.number,
            pid=child.process.pid if child.process else None,
            exit_code=code,
            pause_s=pause,
        )

    def _kill(self, child: Child) -> None:
        assert child.process is not None
        child.process.kill()

    # Stopping

    @property
    def _is_stopping(self) -> bool:
        return bool(self._received or self._refusal)

    def _take(self) -> None:
        try:
            numbers = os.read(self._pipe, 512)
        except BlockingIOError:
            return
        # Any other has only woken this process, as the end of a child does.
        for number in [n for n in numbers if n in stop_signals()]:
            self._obey(signal.Signals(number))

    def _obey(self, number: signal.Signals) -> None:
        self._received.append(number)
        level = len(self._received)
        if level > 2:
            for child in self._alive:
                self._kill(child)
            leave(128 + number)
        what = "stopping all processes" if level == 1 else "all processes leave now"
        self._say(f"{number.name}: {what}.", event="supervisor.stopping", signal=number.name)
        self._stop(level, number)

    def _stop(self, level: int, number: int) -> None:
        self._deadline = time.monotonic() + MARGIN + (self._grace if level == 1 else 0.0)
        for child in self._children:
            child.start_at = None
        for child in self._alive:
            child.tell("stop", level, number)


def how(child: Child, code: int) -> str:
    """Return how the process has ended, as the rest of a sentence."""
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    if code == REPLACE:
        return "asked to be replaced"
    if child.why:
        return f"could not start: {child.why.rstrip('.')}"
    return "has stopped" if child.is_done else f"died with exit code {code}"


@contextmanager
def _signal_pipe(numbers: list[signal.Signals]) -> Iterator[int]:
    """Yield the end of a pipe from which the numbers of these signals are read as bytes."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, noted) for number in numbers}
    # Whoever started us may have held them back until we can take them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(fd_before)
        os.close(reading)
        os.close(writing)


# In a process that has a supervisor


class Orders(Signals):
    """The signals of a runner that has a supervisor, and what that tells it.

    A signal may be sent to the supervisor alone, or to all processes at once, as a terminal and
    systemd do. So one that comes directly is the first, however often it comes, and only the
    supervisor says that there was a second.
    """

    def __init__(self, runner: Runner, report: Report, leash: Leash) -> None:
        super().__init__(runner, report)
        self._leash = leash
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        super().__enter__()
        threading.Thread(target=self._obey, name="dbtasks-leash", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self._leash.tell("done")
        super().__exit__(*exc_info)

    def _obey(self) -> None:
        for what, *words in self._leash.told():
            if what == "gone":
                self._runner.miss(words[0])
            else:
                self._reach(*words)
        self._take(signal.SIGTERM, "The supervisor is gone")

    def _take(self, number: int, why: str | None = None) -> None:
        with self._lock:
            if not self.received:
                super()._take(number, why)

    def _reach(self, level: int, number: int, why: str | None = None) -> None:
        with self._lock:
            while len(self.received) < level:
                super()._take(number, why)
