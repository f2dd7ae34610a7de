"""Linux's word that files are written to.

Owns the three calls of inotify, which the standard library does not have. Never says what was
written, nor whether that is complete.
"""

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# The event that is asked for: somebody wrote to the file.
MODIFY = 0x2


class Writes:
    """A descriptor that can be read once one of the watched files was written to."""

    def __init__(self) -> None:
        """Raise OSError where there is no inotify, or no more of it."""
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._add, start = libc.inotify_add_watch, libc.inotify_init1
        except AttributeError:
            raise OSError("this system has no inotify") from None
        self._fd = _checked(start(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch those of the files that there are; again is no harm.

        Raise OSError if one cannot be: a user may watch so many, in all processes together.
        """
        for path in paths:
            with suppress(FileNotFoundError):
                _checked(self._add(self._fd, os.fsencode(path), MODIFY))

    def forget(self) -> None:
        """Drop what was told so far."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify: {os.strerror(number)}")
    return result
