"""What an exception means for the task that raised it.

Owns which error the attempt ends with, whether and when the task is retried, and the text that is
kept. Never calls the task.
"""

import asyncio
import concurrent.futures
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from traceback import format_exception
from typing import Any

import asgiref
from django.tasks import base

from ..base import payload, policy
from ..base.result import ErrorEntry, class_path
from ..exceptions import (
    Discard,
    Retry,
    Snooze,
    TaskCancelled,
    TaskInterrupted,
    TaskTimeout,
)

logger = logging.getLogger("dbtasks.runner")

# The most characters of a traceback that a row keeps.
MAX_TRACEBACK = 16_384
# The most exceptions of a chain whose tracebacks are cut.
MAX_CHAIN = 100
# Files that stand between a thread of ours and the task's function.
_OUR_FILES = (
    os.path.dirname(__file__) + os.sep,
    os.path.dirname(asgiref.__file__) + os.sep,
    os.path.dirname(concurrent.futures.__file__) + os.sep,
    base.__file__,
)


def verdict(
    error: BaseException, asked: Exception | None, was_interrupted: bool = False
) -> BaseException:
    """Return the error that the attempt ends with; `asked` is why it was asked to end, or None.

    A cancelled task ends as cancelled unless it succeeds. A task that ran out of time may still end
    in its own way, such as Snooze, unless it was interrupted. Whatever it raises then comes from
    the interrupt: in the middle of a transaction, for example, Django raises another exception.
    """
    if asked is None or isinstance(error, type(asked)):
        return error
    was_interrupted |= isinstance(error, TaskInterrupted | asyncio.CancelledError)
    if isinstance(asked, TaskCancelled) or (was_interrupted and isinstance(asked, TaskTimeout)):
        reason = type(asked)(str(asked))
        reason.__cause__ = error
        return reason
    return error


def delay_before_retry(
    task: Any, error: BaseException, failures: int, policy_of: Callable[[str], Any], result: Any
) -> float | None:
    """Return the seconds until the task is retried; None if it is not.

    `failures` includes this one. `policy_of` returns a policy by its name. `result` returns the
    task's result, for a backoff that is a function.
    """
    retry_on = (Retry, *getattr(task, "retry_on", (Exception,)))
    discard_on = (Discard, Snooze, TaskCancelled, *getattr(task, "discard_on", ()))
    if failures >= policy_of("max_attempts") or task is None:
        return None
    if isinstance(error, discard_on) or not isinstance(error, retry_on):
        return None
    try:
        if isinstance(error, Retry) and (delay := _retry_delay(error)) is not None:
            return delay
        return policy.delay_after(policy_of("backoff"), failures, error, result)
    except Exception:  # whatever the task's own function raises; the task's error counts
        logger.exception("The backoff of %s failed; the task is not retried", task.module_path)
        return None


def snooze_delay(error: Snooze) -> float | None:
    """Return the seconds of a Snooze; None if it has no valid delay."""
    with suppress(ValueError):
        return policy.seconds(error.delay)
    return None


def _retry_delay(error: Retry) -> float | None:
    """Return the seconds of a Retry, which may be its first argument; None if it has none.

    Raise ValueError if its delay is not valid.
    """
    if error.delay is not None:
        return policy.seconds(error.delay)
    with suppress(ValueError):
        return policy.seconds(error.args[0])
    return None


def cut_frames(error: BaseException) -> None:
    """Remove the frames of our own calls from the beginning of the exception's tracebacks.

    A traceback then begins where the task does. One that never leaves our code stays whole.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen or len(seen) == MAX_CHAIN:
            continue
        seen.add(id(each))
        left += each.__cause__, each.__context__
        frames = each.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OUR_FILES):
            frames = frames.tb_next
        if frames is not None:
            each.__traceback__ = frames


def describe_error(error: BaseException) -> ErrorEntry:
    """Return the exception's class path and its traceback, cut to what every database can store."""
    try:
        text = "".join(format_exception(error))
    except Exception as broken:  # the traceback module calls code of the exception's class
        text = (
            f"{type(error).__qualname__} (its traceback cannot be shown: {type(broken).__name__})"
        )
    return class_path(type(error)), payload.clean(text, MAX_TRACEBACK)
