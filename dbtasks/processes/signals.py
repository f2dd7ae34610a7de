"""Signals that are read from a pipe.

Owns which signals ask a process to stop, and how they are received even while the main thread is
busy. Never decides what a signal does.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    # Under nohup it is ignored, and stays so.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
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
