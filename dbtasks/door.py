"""The ways into a process that run tasks in the thread of a caller.

Owns what each of them allows its tasks. Never runs a task.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


class Crowded(Exception):
    """Raised by Door.alone() if other tasks run and do not end soon."""


@dataclass(frozen=True, slots=True)
class Door:
    """What a way into the process allows the tasks that it runs.

    The default is what process_one() does.
    """

    # Returns a context manager in which nothing else runs, for a quarantined row. It is entered
    # before the row is claimed. It may raise Crowded: then the row is left READY.
    alone: Callable[[], AbstractContextManager[Any]] = nullcontext
    # When the caller's time is over, on the monotonic clock. Ten seconds before that, a running
    # task is asked to end as by a runner that stops. None is never.
    deadline: float | None = None
    # Whether a task is interrupted at its timeout, and when it is cancelled.
    interrupts: bool = False
    # Whether tasks start without the caller's context variables, such as language and time zone.
    fresh_context: bool = False
    # Whether Ctrl-C may come in the main thread. Without it, a task that raises KeyboardInterrupt
    # has failed, and nothing is raised.
    has_ctrl_c: bool = True
