"""*When* things happen.

Owns durations as people write them, and schedules: intervals and cron lines in any time zone.
Never reads the database; settings only for the project's zone, the clock only where no moment is
given.
"""

import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Any, Self
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from . import cron
from .exceptions import CrontabError, DurationError, ScheduleError, ScheduleExhausted

# What is longer than that ends no date that a database can hold.
LONGEST = timedelta(days=36_525)

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])\s*")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


class Duration(timedelta):
    """A positive span of time: seconds, a timedelta, or text such as ``"7d"`` or ``"1h30m"``.

    Text is one or more numbers, each with a unit: ``w``, ``d``, ``h``, ``m`` or ``s``. Raise
    DurationError if the value is anything else, is not above zero, or is over a hundred years.
    """

    def __new__(cls, value: Any) -> Self:
        """Build the duration that the value stands for."""
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
        return (type(self), (self.total_seconds(),))

    def __str__(self) -> str:
        """Return the shortest text that reads back as the same duration, such as ``1h30m``."""
        rest, parts = self.total_seconds(), []
        for unit, size in _UNITS.items():
            count, rest = divmod(rest, size) if unit != "s" else (rest, 0)
            if text := f"{count:.6f}".rstrip("0").rstrip("."):
                parts.append(f"{text}{unit}")
        return "".join(part for part in parts if part[:-1] != "0")


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
    raise ValueError


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A wall clock from which to look whether a line ever ticks.
ORIGIN = datetime(2000, 1, 1)  # noqa: DTZ001
MINUTE, MICROSECOND = timedelta(minutes=1), timedelta(microseconds=1)
# Shorter periods would be work for a thread of the task's own, not for a row each.
SHORTEST_PERIOD = timedelta(seconds=0.1)
# No two offsets of one zone have ever been further apart, nor changed twice in a quarter of it.
WIDEST_CHANGE = timedelta(hours=26)


class Schedule(ABC):
    """Moments that come again: its ticks.

    A naive datetime is a wall clock, and what comes back is one. For an aware one the ticks are
    those of the schedule's time zone, and come back in it; that zone is Django's TIME_ZONE unless
    the schedule has its own.
    """

    def __init__(self, timezone: str | tzinfo | None = None) -> None:
        self.timezone = None if timezone is None else zone(timezone)

    # The text that it is made from, and that stands for it in the database.
    text: str

    @abstractmethod
    def _after(self, moment: datetime, place: tzinfo) -> datetime:
        """Return the first tick later than the moment, both in UTC, with the clocks of a place.

        Raise ScheduleExhausted if there is none.
        """

    def match(self, dt: datetime) -> bool:
        """Tell whether the moment is a tick."""
        # In UTC: Python compares datetimes of one zone by what their clocks show.
        return _utc(self.first(dt)) == _utc(dt)

    def first(self, after: datetime) -> datetime:
        """Return the first tick at that moment or later."""
        return self.next((after if after.tzinfo is None else _utc(after)) - MICROSECOND)

    def next(self, after: datetime | None = None, until: datetime | None = None) -> datetime:
        """Return the first tick later than `after`, which is now unless given.

        Raise ScheduleExhausted if there is none, or none up to `until`, that moment included.
        """
        after = datetime.now(UTC) if after is None else after
        place = UTC if after.tzinfo is None else self.place
        tick = self._after(_utc(after), place)
        if until is not None and tick > _utc(until):
            raise ScheduleExhausted(f"{self} has no tick from {after} to {until}.")
        return tick.replace(tzinfo=None) if after.tzinfo is None else tick.astimezone(place)

    def dates(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the ticks later than `after`, up to `until`, that moment included."""
        while True:
            try:
                after = self.next(after, until)
            except ScheduleExhausted:
                return
            yield after

    def latest(self, after: datetime, until: datetime, count: int) -> list[datetime]:
        """Return the last `count` ticks among those of dates(), without a walk through all."""
        window = MINUTE
        while True:
            is_all = _utc(until) - _utc(after) <= window
            start = after if is_all else (_utc(until) - window).replace(tzinfo=after.tzinfo and UTC)
            ticks = deque(self.dates(start, until), maxlen=count)
            if is_all or len(ticks) == count:
                return list(ticks)
            window *= 8

    @property
    def place(self) -> tzinfo:
        """The time zone whose clocks count."""
        if self.timezone is not None:
            return self.timezone
        # Not at the top: schedules are made in settings.
        from django.utils.timezone import get_default_timezone

        return get_default_timezone()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        own = "" if self.timezone is None else f", timezone={str(self.timezone)!r}"
        return f"{type(self).__name__}({self.text!r}{own})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__reduce__() == self.__reduce__()

    def __hash__(self) -> int:
        return hash((type(self), self.text))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.text, self.timezone))


class Every(Schedule):
    """Ticks at whole multiples of the period since 1970 began, in UTC, whenever it was started.

    Raise DurationError if the period is no duration, ScheduleError if it is too short.
    """

    def __init__(self, period: Any, timezone: str | tzinfo | None = None) -> None:
        super().__init__(timezone)
        self.period = Duration(period)
        if self.period < SHORTEST_PERIOD:
            raise ScheduleError(f"{period!r} is too short a period. Use 0.1 seconds or more.")
        self.text = str(self.period)

    def _after(self, moment: datetime, place: tzinfo) -> datetime:
        try:
            return EPOCH + ((moment - EPOCH) // self.period + 1) * self.period
        except OverflowError:
            raise ScheduleExhausted from None


class Crontab(Schedule):
    """Ticks that a cron line of five fields describes, to the minute.

    Where clocks are set forward, a fixed time that they skip ticks once, at the end of the gap;
    where they are set back, it ticks the first time only. A line whose minute or hour begins with
    ``*`` is an interval: it ticks whenever the clock shows what it says. ``~`` is a number that
    only `key` decides. Raise CrontabError if the text is no cron line, or its date never comes.
    """

    def __init__(self, spec: str, timezone: str | tzinfo | None = None, key: str = "") -> None:
        super().__init__(timezone)
        if not isinstance(spec, str):
            raise CrontabError(f"{spec!r} is no cron line. Use text such as '30 3 * * 1-5'.")
        self.text, self.key = " ".join(spec.split()), key
        self._line = cron.read(spec, key)
        try:
            self._search(ORIGIN)
        except ScheduleExhausted:
            raise CrontabError(f"{spec!r} names a date that never comes.") from None

    def match(self, dt: datetime) -> bool:
        """Tell whether the moment is in the minute of a tick."""
        return super().match(dt.replace(second=0, microsecond=0))

    def _after(self, moment: datetime, place: tzinfo) -> datetime:
        try:
            if self._line.is_fixed:
                return self._after_by_wall(moment, place)
            return self._after_by_time(moment, place)
        except OverflowError:
            raise ScheduleExhausted from None

    def _after_by_wall(self, moment: datetime, place: tzinfo) -> datetime:
        wall, tick = _wall(moment, place), moment
        # In the second pass of an hour that comes twice, its ticks have been.
        while tick <= moment:
            wall = self._search(wall)
            tick = _moment_of(wall, place)
        return tick

    def _after_by_time(self, moment: datetime, place: tzinfo) -> datetime:
        """Look for what the clock shows, with one offset at a time."""
        while True:
            wall = self._search(_wall(moment, place)) - _offset(moment, place)
            tick = wall.replace(tzinfo=UTC)
            near = min(tick, moment + WIDEST_CHANGE)
            if change := _change(moment, near, place):
                # Nothing ticks before it, and the clock may jump right to a tick.
                wall = _wall(change, place)
                if self._search(wall - MICROSECOND) == wall:
                    return change
                moment = change
            elif near == tick:
                return tick
            else:
                # What the clock shows in between is no tick, whatever the offset.
                moment = max(near, tick - WIDEST_CHANGE)

    def _search(self, wall: datetime) -> datetime:
        """Return the first minute after the naive wall clock that the line describes."""
        start, found = wall.replace(second=0, microsecond=0), []
        for finder in self._finders:
            # A search moves the finder: each has its own.
            with suppress(CroniterBadDateError, ValueError):
                found.append(copy(finder).get_next(datetime, start_time=start))
        if not found:
            raise ScheduleExhausted(f"{self} has no tick after {wall}.")
        return min(found)

    @cached_property
    def _finders(self) -> list[croniter]:
        return [croniter(text, ORIGIN, day_or=False) for text in self._line.texts]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.text, self.timezone, self.key))


def parse(value: Any, timezone: str | tzinfo | None = None, key: str = "") -> Schedule:
    """Return the schedule that a user's value stands for, in that zone unless it has its own.

    A cron line or alias, a duration (``"15m"``, a timedelta, seconds) or a Schedule. Raise
    CrontabError, DurationError or ScheduleError if it is none.
    """
    if isinstance(value, Schedule):
        place = value.timezone or timezone
        if type(value) is Crontab:
            return Crontab(value.text, place, key or value.key)
        return Every(value.period, place) if type(value) is Every else value
    if isinstance(value, str) and (len(value.split()) > 1 or value.strip().startswith("@")):
        try:
            return Every(value, timezone)
        except DurationError:
            return Crontab(value, timezone, key)
    try:
        return Every(value, timezone)
    except DurationError:
        raise ScheduleError(
            f"{short_repr(value)} is no schedule. Use a cron line such as '30 3 * * 1-5' or "
            "'@daily', or a duration above zero such as '15m', '1h30m' or a timedelta."
        ) from None


def zone(value: str | tzinfo) -> tzinfo:
    """Return the time zone; raise ScheduleError if there is none of that name."""
    if value is UTC or isinstance(value, ZoneInfo):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ScheduleError(
            f"{value!r} is no time zone. Use a name such as 'UTC' or 'Europe/Berlin'."
        ) from None


def short_repr(value: Any) -> str:
    """Return the value as it is shown in a sentence."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _utc(moment: datetime) -> datetime:
    """Return the moment in UTC; a naive wall clock as if it were there."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _wall(moment: datetime, place: tzinfo) -> datetime:
    """Return what the clocks of the place show at that moment."""
    return moment.astimezone(place).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, place: tzinfo) -> timedelta:
    return moment.astimezone(place).utcoffset() or timedelta()


def _moment_of(wall: datetime, place: tzinfo) -> datetime:
    """Return, in UTC, when clocks first show that; if they skip it, when they do so."""
    here = wall.replace(tzinfo=place)
    before, after = (here.replace(fold=n).utcoffset() or timedelta() for n in (0, 1))
    if before >= after:
        return here.astimezone(UTC)
    utc = wall.replace(tzinfo=UTC)
    return _change(utc - after, utc - before, place) or utc - before


def _change(start: datetime, end: datetime, place: tzinfo) -> datetime | None:
    """Return when, after the start and up to the end, the place's offset first changes."""
    offset, step = _offset(start, place), WIDEST_CHANGE / 4
    while _offset(near := min(start + step, end), place) == offset:
        if near == end:
            return None
        start = near
    while near - start > timedelta(seconds=1):
        middle = start + (near - start) // 2
        if _offset(middle, place) == offset:
            start = middle
        else:
            near = middle
    return near.replace(microsecond=0)
