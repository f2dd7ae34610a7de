"""A strict parser of cron expressions.

Owns their grammar: what a field may contain, and the message about what it may not. Never searches
for a date: croniter does, and receives the expression in a form that it cannot misread.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from ..exceptions import CrontabError

# No real expression is longer. A list of ten thousand numbers takes a second to search.
MAX_LENGTH = 200

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
# Letters of a name that are enough.
SHORT_NAME = 3


class Field(NamedTuple):
    """One of the five fields: its title, and its numbers and their full names."""

    title: str
    low: int
    high: int
    # The last value of ``*``. A 7 may be written for Sunday, but its value is 0.
    last: int
    names: tuple[str, ...] = ()
    # What else the field takes, for the message.
    special: str = ""

    def named(self, text: str) -> int | None:
        """Return the number with that name, in full or by its first three letters; else None."""
        for number, name in enumerate(self.names, self.low):
            if text in (name, name[:SHORT_NAME]):
                return number
        return None

    @property
    def size(self) -> int:
        """The number of values."""
        return self.last - self.low + 1


MINUTE, HOUR = Field("minute", 0, 59, 59), Field("hour", 0, 23, 23)
DAY = Field("day of month", 1, 31, 31, special=", L (the last day)")
MONTH = Field("month", 1, 12, 12, _MONTHS)
WEEKDAY = Field("day of week", 0, 7, 6, _DAYS, ", 5#3 (the third Friday), 5L (the last one)")
FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)
# A random day after the 28th would skip the months that do not have it.
LAST_RANDOM_DAY = 28

_ITEM = re.compile(
    r"(?:(?P<star>\*)|(?P<low>\w*)(?P<tilde>~)(?P<high>\w*)|(?P<first>\w+)(?:-(?P<last>\w+))?)"
    r"(?:/(?P<step>\d{1,3}))?",
    re.ASCII,
)
_NTH = re.compile(r"(\w+)#([1-5])|(\w+)l|l(\w+)", re.ASCII)


class Line(NamedTuple):
    """A parsed cron expression."""

    # Each field as a list of plain numbers, or ``*`` for all numbers. If a match of either day
    # field is enough, there are two texts: croniter misreads some that have both day fields.
    texts: tuple[str, ...]
    # True if neither minute nor hour begins with a star: a time of day, not an interval.
    is_fixed: bool


def read(text: str, key: str) -> Line:
    """Return the parsed expression; each ``~`` becomes a number that depends on `key`.

    Raise CrontabError, which names the field, if the expression is not valid.
    """
    shown = text if len(text) <= MAX_LENGTH else f"{text[:40]}…"
    try:
        if len(text) > MAX_LENGTH:
            raise CrontabError(f"It has more than the {MAX_LENGTH} characters allowed.")
        return _read(_words(text), key)
    except CrontabError as error:
        raise CrontabError(f"{shown!r} is not a valid cron expression. {error}") from None


def differences(text: str) -> Iterator[str]:
    """Yield a sentence for each part of a valid expression that some crons read differently."""
    words = text.lower().split()
    if len(words) != len(FIELDS):
        return
    for field, word in zip(FIELDS, words, strict=True):
        for item in word.split(","):
            if found := re.fullmatch(r"(\w+)/(\d+)", item):
                first, step = found.groups()
                yield (
                    f"{item!r} means {first}-{field.high}/{step} here, and only {first} in some "
                    f"other crons. Write {first}-{field.last}/{step}, or {first}."
                )
    day, weekday = words[2], words[4]
    if "*" not in (day, weekday) and (day.startswith("*") or weekday.startswith("*")):
        yield (
            "both day fields must match, as in Vixie's cron, because one begins with *. In some "
            "other crons one match is enough."
        )


def _words(text: str) -> list[str]:
    if text.strip().startswith("@"):
        name = text.strip().lower()
        if name not in ALIASES:
            raise CrontabError(f"The aliases are {', '.join(ALIASES)}.")
        return ALIASES[name].split()
    words = text.lower().split()
    if len(words) != len(FIELDS):
        raise CrontabError(
            f"It has {len(words)} fields, not five: minute, hour, day of month, month, day of week."
        )
    return words


def _read(words: list[str], key: str) -> Line:
    sets = [_values(field, word, key) for field, word in zip(FIELDS, words, strict=True)]
    minute, hour, day, _, weekday = words
    # As in Vixie's cron: if one day field begins with a star, both must match, else either.
    day_or = not (day.startswith("*") or weekday.startswith("*"))
    if day_or and (_is_full(DAY, sets[2]) or _is_full(WEEKDAY, sets[4])):
        sets[2] = sets[4] = {"*"}
    texts = [_text(field, values) for field, values in zip(FIELDS, sets, strict=True)]
    either = [[*texts[:4], "*"], [*texts[:2], "*", *texts[3:]]] if day_or else [texts]
    is_fixed = not (minute.startswith("*") or hour.startswith("*"))
    return Line(tuple(" ".join(words) for words in either), is_fixed)


def _values(field: Field, word: str, key: str) -> set[str]:
    """Return the field's values as texts: numbers, ``l``, ``5#3`` or ``l5``."""
    found: set[str] = set()
    for position, item in enumerate(word.split(",")):
        if special := _special(field, item):
            found.add(special)
        else:
            found |= {str(n) for n in _numbers(field, item, f"{key}\n{field.title}\n{position}")}
    if field is WEEKDAY:
        found = {"0" if value == "7" else value for value in found}
    return found


def _special(field: Field, item: str) -> str | None:
    """Return the item as croniter writes it if it is the last day or the nth weekday of a month."""
    if field is DAY and item == "l":
        return "l"
    if field is WEEKDAY and (nth := _NTH.fullmatch(item)):
        day, number, *last = nth.groups()
        weekday = _number(field, day or last[0] or last[1], item) % 7
        return f"{weekday}#{number}" if number else f"l{weekday}"
    return None


def _numbers(field: Field, item: str, seed: str) -> Iterator[int]:
    found = _ITEM.fullmatch(item)
    if found is None or (found["tilde"] and found["step"]):
        raise _wrong(field, item, "is not understood")
    step = int(found["step"] or 1)
    if not 1 <= step <= field.size:
        raise _wrong(field, item, f"steps by {step}, which is not from 1 to {field.size}")
    if found["star"]:
        low, high = field.low, field.last
    elif found["tilde"]:
        low = high = _random(field, item, found["low"], found["high"], seed)
    else:
        low = high = _number(field, found["first"], item)
        if found["last"]:
            high = _number(field, found["last"], item)
        elif found["step"]:
            high = field.high
    if low > high:
        raise _wrong(field, item, "runs backwards; write two ranges")
    yield from range(low, high + 1, step)


def _random(field: Field, item: str, low: str, high: str, seed: str) -> int:
    """Return a number from low to high that depends on the seed, the same in every process."""
    first = _number(field, low, item) if low else field.low
    usual = LAST_RANDOM_DAY if field is DAY else field.last
    last = _number(field, high, item) if high else max(first, usual)
    if first > last:
        raise _wrong(field, item, "runs backwards")
    chance = int.from_bytes(sha256(seed.encode()).digest()[:8])
    return first + chance % (last - first + 1)


def _number(field: Field, text: str, item: str) -> int:
    if (named := field.named(text)) is not None:
        return named
    if not re.fullmatch("[0-9]{1,2}", text):
        raise _wrong(field, item, "is not understood")
    if not field.low <= int(text) <= field.high:
        raise _wrong(field, item, "is out of range")
    return int(text)


def _wrong(field: Field, item: str, what: str) -> CrontabError:
    short = ", ".join(name[:SHORT_NAME] for name in field.names)
    names = f", or {short}" if short else ""
    return CrontabError(
        f"{field.title.capitalize()} {item!r} {what}. Use numbers from {field.low} to "
        f"{field.high}{names}; *, a-b, a~b, */n, lists with commas{field.special}."
    )


def _is_full(field: Field, values: set[str]) -> bool:
    return sum(value.isdigit() for value in values) == field.size


def _text(field: Field, values: set[str]) -> str:
    """Return the values in a form that croniter cannot misread."""
    if values == {"*"} or _is_full(field, values):
        return "*"
    if field is WEEKDAY and not all(value.isdigit() for value in values):
        # croniter takes plain and counted weekdays together only if all are counted.
        days = {value for value in values if value.isdigit()}
        values = (values - days) | {f"{day}#{n}" for day in days for n in range(1, 6)}
    return ",".join(sorted(values, key=lambda value: (len(value), value)))
