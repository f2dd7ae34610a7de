"""Signals that are read from a pipe.

Owns which signals ask a process to stop, and how they are received even while the main thread is
busy. It is also the only module that knows which signals Windows lacks. Never decides what a signal
does.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Seconds in which a repeated signal counts once. GNU timeout sends it to its process and then to
# the whole group; a terminal and systemd send it to all processes, and some of these pass it on.
SIGNAL_DEBOUNCE = 0.2


class Debounce:
    """Tells a signal from an echo of the last one."""

    def __init__(self, seconds: float = SIGNAL_DEBOUNCE) -> None:
        self._seconds = seconds
        self._last = 0
        # On the monotonic clock: when the last signal had been dealt with.
        self._at = -seconds

    def is_echo(self, number: int) -> bool:
        """Return whether the same signal was dealt with just now."""
        return number == self._last and time.monotonic() - self._at < self._seconds

    def dealt_with(self, number: int) -> None:
        """Start the time in which the signal counts as an echo."""
        self._last, self._at = number, time.monotonic()


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    if sys.platform == "win32":
        # Ctrl-Break, and a console that is closed.
        return [*wanted, signal.SIGBREAK]
    # Under nohup it is ignored, and stays so.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


def child_signals() -> list[signal.Signals]:
    """Return the signals that report the end of a child process."""
    if sys.platform == "win32":
        return []
    return [signal.SIGCHLD]


def block(numbers: Iterable[int]) -> Iterable[int]:
    """Keep these signals pending in this thread and in processes it starts; return the old mask."""
    if sys.platform == "win32":
        return []
    return signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def unblock(numbers: Iterable[int]) -> None:
    """Let this thread receive these signals."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def restore(mask: Iterable[int]) -> None:
    """Undo block(), which returned that mask."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def signal_pipe(numbers: Sequence[signal.Signals], *, blocking: bool = False) -> Iterator[int]:
    """Yield the descriptor of a pipe from which the numbers of these signals are read as bytes.

    Must be entered in the main thread. The interpreter itself writes to the pipe, because a handler
    would wait until the main thread runs Python code. A `blocking` descriptor is read by a thread,
    which sees the end of the file when the block ends, and must then close the descriptor.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, blocking)
    os.set_blocking(writing, False)
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _ignore) for number in numbers}
    # A supervisor blocks them until its process handles them.
    unblock(numbers)
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(fd_before)
        os.close(writing)
        if not blocking:
            os.close(reading)


def _ignore(number: int, frame: Any) -> None:
    """Do nothing, because the signal is already in the pipe."""
