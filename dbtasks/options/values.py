"""Parsers of values on a command line or in the environment.

Owns the message about each text that is not valid. Never knows which option a value is for.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from ..exceptions import DurationError
from ..schedule.duration import Duration, duration_or_zero


def whole(what: str, least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) or not least <= int(text) <= most:
            raise ArgumentTypeError(
                f"{text!r} is not a valid {what}. Use a whole number from {least:,} to {most:,}."
            )
        return int(text)

    return parse


def seconds(what: str, least: float, most: float) -> Callable[[str], float]:
    """Return an argparse type: seconds as a number, or a duration such as ``90s`` or ``5m``."""

    def parse(text: str) -> float:
        found = _seconds(text)
        if found is None or not least <= found <= most:
            raise ArgumentTypeError(
                f"{text!r} is not a valid {what}. Use seconds from {least:g} to {most:,g}, or a "
                "duration such as '0.5s', '90s' or '5m'."
            )
        return found

    return parse


def duration(text: str) -> Duration:
    """Return the duration of a text such as ``7d``, or of a number of seconds; 0 is valid."""
    found = _seconds(text)
    try:
        return duration_or_zero(text if found is None else found)
    except DurationError as error:
        raise ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float | None:
    """Return the seconds of a number or a duration; None if the text is not valid."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return Duration(text).total_seconds()
    except DurationError:
        return None


def worker_name(text: str) -> str:
    """Return the text if a worker id can start with it: 1 to 100 printable characters."""
    if not 1 <= len(text) <= 100 or not text.isprintable() or text != text.strip():
        raise ArgumentTypeError(
            f"{text!r} is not a valid worker id. Use 1 to 100 printable characters, without spaces "
            "at the ends."
        )
    return text


_SWITCH = {"1": True, "true": True, "yes": True, "on": True}
_SWITCH |= {"0": False, "false": False, "no": False, "off": False}


def switch(text: str) -> bool:
    """Return whether the text means on or off."""
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ArgumentTypeError(f"{text!r} is not valid. Use 'on' or 'off'.") from None


def queues(text: str) -> list[str]:
    """Return the names of queues in a text that separates them by commas; at least one."""
    found = names(text)
    if not found:
        raise ArgumentTypeError(f"{text!r} names no queue.")
    return found


def names(text: str) -> list[str]:
    """Return the names in a text that separates them by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
