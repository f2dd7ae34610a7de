"""Parameters of a request: a JSON object in its body, or a query.

Owns what is a valid parameter, and the sentence about each one that is not. Never repeats a value
in a sentence: it may be a secret at the wrong place.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

from ...base.lengths import MAX_QUEUE
from ...base.result import FINISHED
from ...exceptions import DurationError
from ...schedule.duration import Duration, short_repr

# The most bytes that a body may have.
MAX_BODY = 16 * 1024
_WHOLE = re.compile(r"-?[0-9]{1,18}")


class Invalid(ValueError):
    """A parameter is not valid; the message is a sentence for the sender."""


class Kind(Protocol):
    """What a parameter may be."""

    def read(self, value: Any) -> Any:
        """Return the value of a JSON body; raise Invalid with what it must be."""

    def from_texts(self, texts: Sequence[str]) -> Any:
        """Return what the texts of a query would be in JSON."""


def _only(texts: Sequence[str]) -> str:
    if len(texts) > 1:
        raise Invalid("must be given once")
    return texts[0]


class Number:
    """Seconds, whole or not, within limits; an integer if `is_whole`."""

    def __init__(self, least: float, most: float, *, is_whole: bool = False) -> None:
        self.least, self.most, self.is_whole = least, most, is_whole

    def read(self, value: Any) -> Any:
        types = int if self.is_whole else int | float
        # bool is a subclass of int.
        if isinstance(value, bool) or not isinstance(value, types):
            raise self._invalid()
        if not self.least <= value <= self.most:
            raise self._invalid()
        return value

    def from_texts(self, texts: Sequence[str]) -> Any:
        text = _only(texts)
        if _WHOLE.fullmatch(text):
            return int(text)
        try:
            number = float(text)
        except ValueError:
            return text
        return number if math.isfinite(number) else text

    def _invalid(self) -> Invalid:
        what = "an integer" if self.is_whole else "a number"
        return Invalid(f"must be {what} from {self.least:,g} to {self.most:,g}")


class Flag:
    """True or false."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise Invalid("must be true or false")
        return value

    def from_texts(self, texts: Sequence[str]) -> Any:
        text = _only(texts)
        return {"true": True, "false": False}.get(text, text)


class QueueName:
    """The name of a queue. Whether there are rows in it is not asked."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, str) or not _is_name(value):
            raise Invalid(f"must be the name of a queue: 1 to {MAX_QUEUE} characters")
        return value

    def from_texts(self, texts: Sequence[str]) -> Any:
        return _only(texts)


def _is_name(text: str) -> bool:
    """Return whether every database takes the text: it has no NUL and no half of a pair."""
    is_storable = "\0" not in text and text == text.encode(errors="replace").decode()
    return 1 <= len(text) <= MAX_QUEUE and is_storable


class Age:
    """A duration above zero."""

    def read(self, value: Any) -> Any:
        try:
            return Duration(value)
        except DurationError:
            raise Invalid(
                "must be a duration above zero, of a hundred years at most: seconds, or a text "
                "such as '12h' or '7d'"
            ) from None

    def from_texts(self, texts: Sequence[str]) -> Any:
        return _only(texts)


class Statuses:
    """A list of final statuses; in a query one or several, also joined by commas."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, list) or not value or any(each not in FINISHED for each in value):
            names = " or ".join(f'"{status}"' for status in FINISHED)
            raise Invalid(f"must be a list of {names}")
        return value

    def from_texts(self, texts: Sequence[str]) -> Any:
        return [each for text in texts for each in text.split(",")]


def parse_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object; an empty text is an empty object. Raise Invalid if it is none."""
    if not raw.strip():
        return {}
    try:
        found = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)
    # RecursionError: it is nested too deep.
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Invalid("The body must be a JSON object in UTF-8, such as {}.")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def read(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the parameters of a JSON object; raise Invalid for the first that is not valid."""
    found = {}
    for name, value in given.items():
        kind = _kind_of(name, kinds)
        try:
            found[name] = kind.read(value)
        except Invalid as error:
            raise Invalid(f"{name!r} {error}.") from None
    return found


def read_query(given: Mapping[str, Sequence[str]], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the parameters of a query, each with its texts; raise what read() raises."""
    found = {}
    for name, texts in given.items():
        kind = _kind_of(name, kinds)
        try:
            found[name] = kind.from_texts(texts)
        except Invalid as error:
            raise Invalid(f"{name!r} {error}.") from None
    return read(found, kinds)


def _kind_of(name: str, kinds: Mapping[str, Kind]) -> Kind:
    if kind := kinds.get(name):
        return kind
    wrong = f"{short_repr(name)} is not a valid parameter."
    if near := get_close_matches(name[:100], kinds, 1):
        raise Invalid(f"{wrong} Did you mean {near[0]!r}?")
    if not kinds:
        raise Invalid(f"{wrong} This URL takes none.")
    raise Invalid(f"{wrong} Use {', '.join(map(repr, kinds))}.")
