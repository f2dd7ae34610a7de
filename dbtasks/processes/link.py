"""The link between a supervisor and a process that it started.

Owns how a process learns that it has a supervisor, and the messages between the two. Never needs
Django's apps: a process may open its link before it loads them, or without loading them.

The link is a pair of sockets that carries one JSON list a line:

    up      ["ready", worker_id]   before it claims under that name; "" if it claims nothing
            ["failed", sentence, later]   it cannot start; with `later` true it may be able to later
            ["done"]               it has stopped as it should; the exit code says how
    down    ["stop", level, n]     stop on signal n, within the grace (1) or now (2); a fourth item
                                   says why
            ["gone", worker_id]    that worker's process has ended
            ["reload"]             start new processes, and send "ready" when they are
    end of the file                the other side is gone
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from ..exceptions import RunnerError

# The variable that a supervisor sets: the process's number, and the descriptor of its socket.
ENVIRONMENT = "DBTASKS_SUPERVISED"


def as_line(words: Iterable[Any]) -> bytes:
    """Return the message as the bytes to send."""
    return f"{json.dumps(list(words))}\n".encode()


class SupervisorLink:
    """The link of this process to the supervisor that started it."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self.number, self._link = number, link

    @classmethod
    def inherited(cls) -> Self | None:
        """Return this process's link, or None if it has no supervisor.

        Raise RunnerError if the environment names a link that cannot be opened.
        """
        # Removed, because processes that a task starts must not use it.
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
        """Return the beginning of this process's worker id, made from that of all processes."""
        return None if name is None else f"{name[:96]}-{self.number}"

    def send(self, *words: Any) -> None:
        """Send a message to the supervisor, unless it is gone. May be called from any thread."""
        with suppress(OSError):
            self._link.sendall(as_line(words))

    def send_ready(self, worker_id: str) -> None:
        """Report the name under which this process is about to claim."""
        self.send("ready", worker_id)

    def receive(self) -> Iterator[list[Any]]:
        """Yield the supervisor's messages until it is gone."""
        with suppress(OSError), self._link.makefile("r") as lines:
            yield from map(json.loads, lines)
