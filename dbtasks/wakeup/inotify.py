"""Linux's inotify, which reports writes to files.

Owns its three calls, which the standard library does not have. Never reports what was written, or
whether it is complete.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

# The event to watch for: a write to the file.
MODIFY = 0x2


class Writes:
    """A descriptor that is readable once one of the watched files was written to."""

    _fd: int
    _add: Any

    def __init__(self) -> None:
        """Raise OSError if the system has no inotify, or a limit is reached."""
        if sys.platform != "linux":
            raise OSError("this system has no inotify")
        libc = ctypes.CDLL(None, use_errno=True)
        self._add, start = libc.inotify_add_watch, libc.inotify_init1
        self._fd = _checked(start(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch those of the files that exist. It does no harm to watch one again.

        Raise OSError if one cannot be watched: all processes of a user share a limit.
        """
        for path in paths:
            with suppress(FileNotFoundError):
                _checked(self._add(self._fd, os.fsencode(path), MODIFY))

    def forget(self) -> None:
        """Discard the events that have arrived."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify: {os.strerror(number)}")
    return result
