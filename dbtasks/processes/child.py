"""One process of a supervisor, which may be started many times.

Owns how it is started, its messages, and how long to wait before it is started again. Never decides
whether it is started again.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from .link import ENVIRONMENT, as_line
from .run import REPLACE
from .signals import block, restore, stop_signals

# A process that dies after this many seconds is started again without a pause.
HEALTHY = 60.0
# The longest pause, in seconds, before a process that keeps dying is started again.
LONGEST_PAUSE = 30.0


class Backoff:
    """The pauses before a process that died is started again: 0, 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived: float) -> float:
        """Return the seconds to wait after a process that lived for `lived` seconds has died."""
        pause = 0.0 if lived >= HEALTHY else self._next
        self._next = min(LONGEST_PAUSE, max(1.0, pause * 2))
        return pause


def command_line() -> list[str]:
    """Return a command line that starts this process once more."""
    return [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]


class Child:
    """One process of the supervisor, which may be started many times.

    `name` is for messages, `command` starts it. A process that `reloads` need not end for new code
    to run, because it starts processes of its own. One that `has_terminal` reads what the
    supervisor would read, so that breakpoint() works in it.
    """

    def __init__(
        self,
        number: int,
        name: str,
        command: list[str],
        *,
        reloads: bool = False,
        has_terminal: bool = False,
    ) -> None:
        self.number, self.name, self.command, self.reloads = number, name, command, reloads
        self._stdin = None if has_terminal else subprocess.DEVNULL
        self.backoff = Backoff()
        # Whether it was ever ready.
        self.was_ready = False
        # When to start it, on the monotonic clock; None while it runs and when it has ended for
        # good; infinity while it waits for a file to change.
        self.start_at: float | None = 0.0
        # The worker id of its runner, or of its last one; "" if it has had none.
        self.worker_id = ""
        self.process: subprocess.Popen[bytes] | None = None
        # Since the last start: when that was, on the monotonic clock; whether the process got
        # ready, has stopped as it should, and sends no more messages; why it could not start.
        self.started_at = 0.0
        self.is_ready = self.is_done = self.is_silent = False
        self.why = ""
        # Whether it may be able to start later, as when its database does not answer yet.
        self.may_start_later = False
        self._link: socket.socket | None = None
        self._heard = b""

    def __str__(self) -> str:
        pid = f" (pid {self.process.pid})" if self.process else ""
        return f"{self.name}{pid}"

    def start(self) -> None:
        """Start the process; raise OSError if the system cannot start another one."""
        self.start_at, self.started_at = None, time.monotonic()
        self.is_ready = self.is_done = self.is_silent = self.may_start_later = False
        self.why, self._heard = "", b""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._link = ours
        with theirs:
            try:
                self.process = _spawn(self.command, self.number, theirs.fileno(), self._stdin)
            except OSError:
                self.hang_up()
                raise

    def kill(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()

    def fileno(self) -> int:
        """Return the descriptor of the link, for a selector; -1 without one."""
        return -1 if self._link is None else self._link.fileno()

    def hang_up(self) -> None:
        """Close the link."""
        if self._link is not None:
            self._link.close()

    def send(self, *words: Any) -> None:
        """Send it a message; do nothing if it is gone or does not read its messages."""
        if self._link is not None:
            with suppress(OSError):
                self._link.send(as_line(words))

    def receive(self) -> list[list[Any]]:
        """Return its messages since the last call; set `is_silent` if there will be no more."""
        if self._link is None:
            return []
        try:
            while data := self._link.recv(65536):
                self._heard += data
            self.is_silent = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_silent = True
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]


def replicas(count: int, command: list[str], has_terminal: bool = False) -> list[Child]:
    """Return `count` processes of one command."""
    return [
        Child(number, f"Process #{number}", command, has_terminal=has_terminal)
        for number in range(1, count + 1)
    ]


def _spawn(
    command: list[str], number: int, link: int, stdin: int | None
) -> subprocess.Popen[bytes]:
    """Start that command with the descriptor of its socket; return the process."""
    # Signals stay blocked until the process handles them: one would end it while it starts.
    mask = block(stop_signals())
    try:
        return subprocess.Popen(
            command,
            env=os.environ | {ENVIRONMENT: f"{number} {link}"},
            stdin=stdin,
            pass_fds=[link],
        )
    finally:
        restore(mask)


def exit_reason(child: Child, code: int) -> str:
    """Return how the process ended, as the end of a sentence."""
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    if code == REPLACE:
        return "asked to be replaced"
    if child.why:
        return f"could not start: {child.why.rstrip('.')}"
    return "has stopped" if child.is_done else f"died with exit code {code}"
