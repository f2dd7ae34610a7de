"""Raises an exception in another thread, but only while that thread runs task code.

Owns the handshake between the two threads. Never raises anything once the task's function has been
left: neither in dbtasks' own code nor in the next task of that thread.
"""

import ctypes
from _thread import RLock, get_ident
from collections.abc import Callable
from typing import Any

from ..exceptions import TaskInterrupted

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)


class Interruptible:
    """One call that another thread may interrupt, once."""

    __slots__ = ("_armed", "_lock", "_thread")

    def __init__(self) -> None:
        # Reentrant, because an interrupt in the middle of acquire() leads to a second acquire().
        self._lock = RLock()
        self._thread: int | None = None
        self._armed = False

    def run[T](self, call: Callable[..., T], args: list[Any], kwargs: dict[str, Any]) -> T:
        """Return what the call returns; raise TaskInterrupted if it was interrupted."""
        self._thread = get_ident()
        try:
            return call(*args, **kwargs)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Prevent interrupts of this thread from now on, and take back one that is on its way.

        The lock is never released, so a later interrupt() finds it taken. One that comes before
        that may be raised at any instruction of this function. There is only one, so the second
        round is not interrupted.
        """
        while True:
            try:
                self._lock.acquire()
                if self._armed:
                    _raise_in(get_ident(), ctypes.py_object())
                return
            except TaskInterrupted:
                continue

    @property
    def was_interrupted(self) -> bool:
        """Whether the call was interrupted, even if it swallowed that or ended just before."""
        return self._armed

    def interrupt(self) -> bool:
        """Raise TaskInterrupted in the thread of the call; return False if the call has ended.

        It is raised when the thread next runs Python code, so a call into C goes on.
        """
        if self._thread is None or not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._armed:
                self._armed = True
                _raise_in(self._thread, ctypes.py_object(TaskInterrupted))
            return True
        finally:
            self._lock.release()
