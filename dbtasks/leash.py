"""What ties a process to the supervisor that started it.

Owns how a process learns that it has one, and what the two say to each other. Never needs Django's
apps: a process may hold its leash before it loads them, or without ever doing so.

Supervisor and process are tied by a pair of sockets that carries one JSON list a line:

    up      ["ready", worker_id]   before it claims in that name; "" where none is claimed in
            ["failed", sentence]   it cannot start
            ["done"]               it has stopped well; the exit code says how
    down    ["stop", level, n]     stop on signal n: 1 in the grace, 2 now; a fourth word says why
            ["gone", worker_id]    that worker's process has ended
            ["reload"]             let new processes take over, and say when they are ready
    end     of the file            the other one is gone
"""

import json
import os
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from .exceptions import RunnerError

# What tells a process that it has a supervisor: its number, and the descriptor of its socket.
ENVIRONMENT = "DBTASKS_SUPERVISED"


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    # nohup asks to be left alone.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


def line(words: Iterable[Any]) -> bytes:
    """Return the words as either side sends them."""
    return f"{json.dumps(list(words))}\n".encode()


class Leash:
    """What ties this process to the supervisor that started it."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self.number, self._link = number, link

    @classmethod
    def held(cls) -> Self | None:
        """Return this process's leash, or None if it has no supervisor.

        Raise RunnerError if it should have one and cannot reach it.
        """
        # Processes that a task starts are none of the supervisor's.
        if (text := os.environ.pop(ENVIRONMENT, None)) is None:
            return None
        try:
            number, fd = map(int, text.split())
            link = socket.socket(fileno=fd)
            link.set_inheritable(False)
        except (OSError, ValueError) as error:
            raise RunnerError(
                f"{ENVIRONMENT}={text!r} in the environment names no supervisor: {error}. Only "
                "'taskrunner --processes' sets it; unset it."
            ) from error
        return cls(number, link)

    def name(self, name: str | None) -> str | None:
        """Return the start of this process's worker id, where that was given for all of them."""
        return None if name is None else f"{name[:96]}-{self.number}"

    def tell(self, *words: Any) -> None:
        """Tell the supervisor something, unless it is gone. From any thread."""
        with suppress(OSError):
            self._link.sendall(line(words))

    def joined(self, worker_id: str) -> None:
        """Tell in whose name this process is about to claim."""
        self.tell("ready", worker_id)

    def told(self) -> Iterator[list[Any]]:
        """Yield what the supervisor says, until it is gone."""
        with suppress(OSError), self._link.makefile("r") as lines:
            yield from map(json.loads, lines)
