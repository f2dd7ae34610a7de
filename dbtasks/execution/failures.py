"""What an exception means for the task that raised it.

Owns which error the attempt ends with, whether and when the task is retried, and the text that is
kept. Never calls the task.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from traceback import format_exception
from typing import Any

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


def verdict(error: BaseException, asked: Exception | None) -> BaseException:
    """Return the error that the attempt ends with; `asked` is why it was asked to end, or None.

    A cancelled task ends as cancelled unless it succeeds. A task that ran out of time may still end
    in its own way, such as Snooze.
    """
    if asked is None or isinstance(error, type(asked)):
        return error
    was_interrupted = isinstance(error, TaskInterrupted | asyncio.CancelledError)
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
        if isinstance(error, Retry) and error.delay is not None:
            return policy.seconds(error.delay)
        return policy.delay_after(policy_of("backoff"), failures, error, result)
    except Exception:  # whatever the task's own function raises; the task's error counts
        logger.exception("The backoff of %s failed; the task is not retried", task.module_path)
        return None


def is_seconds(value: Any) -> bool:
    """Return whether the value is a number of seconds, 0 or more."""
    with suppress(ValueError):
        return policy.seconds(value) >= 0
    return False


def describe_error(error: BaseException) -> ErrorEntry:
    """Return the exception's class path and its traceback, cut to what every database can store."""
    try:
        text = "".join(format_exception(error))
    except Exception as broken:  # the traceback module calls code of the exception's class
        text = (
            f"{type(error).__qualname__} (its traceback cannot be shown: {type(broken).__name__})"
        )
    return class_path(type(error)), payload.clean(text, MAX_TRACEBACK)
