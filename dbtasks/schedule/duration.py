"""Durations as people write them.

Owns what is a valid duration, and its text. Never knows what a duration is used for.
"""

import math
import re
from datetime import timedelta
from typing import Any, Self

from ..exceptions import DurationError

# A longer duration could end at a date that no database can store.
LONGEST = timedelta(days=36_525)
_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])\s*")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_DIGITS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


class Duration(timedelta):
    """A timedelta above zero, made from seconds, a timedelta, or text such as ``"1h30m"``.

    Text is one or more numbers, each with a unit: ``w``, ``d``, ``h``, ``m`` or ``s``. A number
    without a unit counts seconds. `str()` returns the shortest such text. Raise DurationError if
    the value is anything else, is not above zero, or is more than a hundred years.
    """

    def __new__(cls, value: Any) -> Self:
        try:
            self = super().__new__(cls, seconds=_seconds(value))
        except (OverflowError, ValueError):
            self = None
        if self is None or not timedelta(0) < self <= LONGEST:
            raise DurationError(
                f"{value!r} is not a duration above zero, of a hundred years at most. Use seconds, "
                "a timedelta, or text such as '90s', '15m', '1h30m', '7d' or '2w'."
            )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (duration_or_zero, (self.total_seconds(),))

    def __str__(self) -> str:
        """Return the shortest text that reads back as the same duration, such as ``1h30m``."""
        rest, parts = self.total_seconds(), []
        for unit, size in _UNITS.items():
            count, rest = divmod(rest, size) if unit != "s" else (rest, 0)
            if text := f"{count:.6f}".rstrip("0").rstrip("."):
                parts.append(f"{text}{unit}")
        return "".join(part for part in parts if part[:-1] != "0") or "0s"


_ZERO: Duration = timedelta.__new__(Duration)


def duration_or_zero(value: Any) -> Duration:
    """Return the duration, which may also be zero; raise DurationError if it is not valid."""
    try:
        return Duration(value) if _seconds(value) else _ZERO
    except ValueError:
        return Duration(value)


def _seconds(value: Any) -> float:
    """Return the value in seconds; raise ValueError if it is not a duration."""
    match value:
        case timedelta():
            return value.total_seconds()
        case bool():
            raise ValueError
        case int() | float() if math.isfinite(value):
            return float(value)
        case str() if _WHOLE.fullmatch(text := value.strip().lower()):
            return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        case str() if _DIGITS.fullmatch(text := value.strip()):
            return float(text)
    raise ValueError


def short_repr(value: Any) -> str:
    """Return the value's repr, cut off at 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
