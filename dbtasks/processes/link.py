"""The link between a supervisor and a process that it started.

Owns how a process learns that it has a supervisor, and what the two say to each other. Never needs
Django's apps: a process may open its link before it loads them, or without loading them.

The link is a pair of sockets that carries one JSON list a line:

    up      ["ready", worker_id]   before it claims in that name; "" if it claims nothing
            ["failed", sentence]   it cannot start
            ["done"]               it has stopped well; the exit code says how
    down    ["stop", level, n]     stop on signal n, within the grace (1) or now (2); a fourth item
                                   says why
            ["gone", worker_id]    that worker's process has ended
            ["reload"]             start new processes, and say when they are ready
    end of the file                the other side is gone
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from ..exceptions import RunnerError

# What tells a process that it has a supervisor: its number, and the descriptor of its socket.
ENVIRONMENT = "DBTASKS_SUPERVISED"


def as_line(words: Iterable[Any]) -> bytes:
    """Return the words as either side sends them."""
    return f"{json.dumps(list(words))}\n".encode()


class SupervisorLink:
    """What ties this process to the supervisor that started it."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self.number, self._link = number, link

    @classmethod
    def inherited(cls) -> Self | None:
        """Return this process's link, or None if it has no supervisor.

        Raise RunnerError if it should have one and cannot reach it.
        """
        # Processes that a task starts must not find it.
        if (text := os.environ.pop(ENVIRONMENT, None)) is None:
            return None
        try:
            number, fd = map(int, text.split())
            link = socket.socket(fileno=fd)
            link.set_inheritable(False)
        except (OSError, ValueError) as error:
            raise RunnerError(
                f"{ENVIRONMENT}={text!r} in the environment does not name a supervisor: {error}. "
                "Only 'taskrunner --processes' sets it; unset it."
            ) from error
        return cls(number, link)

    def name(self, name: str | None) -> str | None:
        """Return the start of this process's worker id, where that was given for all of them."""
        return None if name is None else f"{name[:96]}-{self.number}"

    def send(self, *words: Any) -> None:
        """Send a message to the supervisor, unless it is gone. May be called from any thread."""
        with suppress(OSError):
            self._link.sendall(as_line(words))

    def send_ready(self, worker_id: str) -> None:
        """Say in which name this process is about to claim."""
        self.send("ready", worker_id)

    def receive(self) -> Iterator[list[Any]]:
        """Yield the messages of the supervisor, until it is gone."""
        with suppress(OSError), self._link.makefile("r") as lines:
            yield from map(json.loads, lines)
