"""Raises an exception in another thread, but only while that thread runs task code.

Owns the handshake between the two threads. Never raises anything once the task's function has been
left: neither in dbtasks' own code nor in the next task of that thread.
"""

import ctypes
import sys
import threading
from _thread import RLock, get_ident
from collections.abc import Callable
from typing import Any

from ..exceptions import TaskInterrupted

# Modules of the standard library whose locks other threads need. Between taking such a lock and the
# `try` that releases it, an exception would leave it locked for ever.
FRAGILE = {
    "importlib",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "logging",
    "logging.handlers",
    "queue",
    "threading",
}
# How many of a thread's innermost frames must be outside of these modules.
FRAMES = 3

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
# Python raises what is on its way at the end of a loop's round. The first one is enough, unless
# another thread is interrupted at the same moment.
_ROUNDS = 100


class Interruptible:
    """One call that another thread may interrupt, once."""

    __slots__ = ("_armed", "_is_late", "_lock", "_thread")

    def __init__(self) -> None:
        # Reentrant, because an interrupt in the middle of acquire() leads to a second acquire().
        self._lock = RLock()
        self._thread: int | None = None
        self._armed = False
        # True if the interrupt came when the call had already ended.
        self._is_late = False

    def run[T](self, call: Callable[..., T], args: list[Any], kwargs: dict[str, Any]) -> T:
        """Return what the call returns; raise TaskInterrupted if it was interrupted.

        That is also raised if the call has swallowed it, or made another exception of it, and then
        returned: what it has done is not complete.
        """
        self._thread = get_ident()
        try:
            value = call(*args, **kwargs)
        finally:
            self._leave()
        if self._armed and not self._is_late:
            raise TaskInterrupted
        return value

    def _leave(self) -> None:
        """Prevent interrupts of this thread from now on, and take back one that is on its way.

        The lock is never released, so a later interrupt() finds it taken. One that comes before
        that may be raised at any instruction of this function. There is only one, so the second
        round is not interrupted.
        """
        while True:
            try:
                self._lock.acquire()
                if self._armed and not self._is_late:
                    for _ in range(_ROUNDS):  # one that is on its way is raised here
                        pass
                    _raise_in(get_ident(), ctypes.py_object())
                return
            except TaskInterrupted:
                self._is_late = True

    @property
    def was_interrupted(self) -> bool:
        """Whether the call was interrupted, even if it swallowed that or ended just before."""
        return self._armed

    def interrupt(self) -> bool:
        """Raise TaskInterrupted in the thread of the call; return True if that must wait.

        It is raised when the thread next runs Python code, so a call into C goes on. It must wait
        while the thread may hold a lock that other threads need. Do nothing if the call has ended.
        """
        if self._thread is None or not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._armed:
                if _is_fragile(sys._current_frames().get(self._thread)):
                    return True
                self._armed = True
                _raise_in(self._thread, ctypes.py_object(TaskInterrupted))
            return False
        finally:
            self._lock.release()


def _is_fragile(frame: Any) -> bool:
    """Return whether an exception at that place may leave a lock of the standard library locked.

    A thread in Condition.wait(), as most that wait are, holds none: it waits inside of a `try`.
    """
    if frame is not None and frame.f_code is _WAIT:
        frame = frame.f_back
        # The function that waits for the condition, such as Event.wait() or Queue.get().
        frame = None if frame is None else frame.f_back
    for _ in range(FRAMES):
        if frame is None or frame.f_code is Interruptible.run.__code__:
            return False
        if frame.f_globals.get("__name__") in FRAGILE:
            return True
        frame = frame.f_back
    return False


_WAIT = threading.Condition.wait.__code__
