"""Policies of attempts: how long one may take, and whether and when another one follows.

Owns their validation and the arithmetic of delays. Never reads a clock, settings or the database.
"""

import math
import random
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from ..schedule.duration import Duration, duration_or_zero

# Seconds before the second attempt; doubled for each later one.
FIRST_DELAY = 5.0
# The longest delay, in seconds, before JITTER is applied.
LONGEST_DELAY = 3600.0
# A delay varies by this share, so that tasks that failed together are not retried together.
JITTER = 0.5

# A policy that is None is taken from OPTIONS. These say that there is no limit at all.
NO_TIMEOUT = math.inf
FOR_EVER = timedelta.max
NO_LIMITS: dict[str, Any] = {"timeout": NO_TIMEOUT, "retain": FOR_EVER}

# Seconds; a list of seconds, whose last item counts for all later attempts; or a function that
# returns a duration, or None to give up.
Backoff = float | tuple[float, ...] | Callable[[BaseException, Any], float | timedelta | str | None]


def exponential(failures: int) -> float:
    """Return the default delay in seconds after `failures` failed attempts."""
    # 5 s * 2 ** 10 is more than an hour already; a larger exponent would only overflow.
    delay = min(FIRST_DELAY * 2.0 ** min(failures - 1, 10), LONGEST_DELAY)
    return delay * random.uniform(1 - JITTER, 1 + JITTER)


def delay_after(
    backoff: Backoff | None, failures: int, error: BaseException, result: Callable[[], Any]
) -> float | None:
    """Return the seconds until the next attempt after `failures` failed ones; None to give up.

    `result` is called for the task's result if the backoff is a function. Raise ValueError if that
    function does not return a duration or None.
    """
    if backoff is None:
        return exponential(failures)
    if callable(backoff):
        answer = backoff(error, result())
        return None if answer is None else seconds(answer)
    if isinstance(backoff, tuple):
        return backoff[min(failures, len(backoff)) - 1]
    return backoff


def seconds(value: Any) -> float:
    """Return the duration in seconds, 0 or more; raise ValueError if it is not valid."""
    if isinstance(value, str):
        return duration_or_zero(value).total_seconds()
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a valid number of seconds.")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is not a valid number of seconds. It must be 0 or more.")
    return float(value)


def check_backoff(value: Any) -> Backoff:
    """Return the backoff; raise ValueError if it is not valid."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and value:
        return tuple(seconds(item) for item in value)
    try:
        return seconds(value)
    except ValueError:
        raise ValueError(
            f"{value!r} is not a valid backoff. Use seconds, a timedelta, text such as '5m', "
            "a list of these, or a module-level function (exception, task_result) that returns one "
            "of them, or None to give up."
        ) from None


def check_attempts(value: Any) -> int:
    """Return the number of attempts; raise ValueError if it is not valid."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a valid number of attempts. Use 1 or more.")
    return value


def check_timeout(value: Any) -> float:
    """Return the duration in seconds; raise DurationError if it is not valid."""
    return NO_TIMEOUT if value == NO_TIMEOUT else Duration(value).total_seconds()


def check_retain(value: Any) -> timedelta:
    """Return how long a row is kept; raise DurationError if it is not valid."""
    return FOR_EVER if value == FOR_EVER else duration_or_zero(value)


def check_on_lost(value: Any) -> str:
    """Return the value of on_lost; raise ValueError if it is not valid."""
    if value not in ("retry", "fail"):
        raise ValueError(f"{value!r} must be 'retry' or 'fail'.")
    return str(value)


def check_meta(value: Any) -> dict[str, Any]:
    """Return the value; raise ValueError if it is not a dict."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} must be a dict.")
    return value


def check_exceptions(value: Any) -> tuple[type[BaseException], ...]:
    """Return the exception class or classes as a tuple; raise ValueError if one is not valid."""
    classes: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ValueError(f"{kind!r} is not an exception class.")
    return tuple(classes)
