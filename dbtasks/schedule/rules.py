"""Schedules: intervals, and cron expressions in any time zone.

Owns which moments are ticks. Never fires one.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Any

from croniter import CroniterBadDateError, croniter

from ..exceptions import CrontabError, DurationError, ScheduleError, ScheduleExhausted
from . import cron
from .duration import Duration, short_repr
from .zones import (
    EPOCH,
    MICROSECOND,
    MINUTE,
    WIDEST_CHANGE,
    _change,
    _moment_of,
    _offset,
    _utc,
    _wall,
    parse_zone,
)

# A wall clock from which to look whether a line ever ticks.
ORIGIN = datetime(2000, 1, 1)  # noqa: DTZ001
# Shorter periods would be work for a thread of the task's own, not for a row each.
SHORTEST_PERIOD = timedelta(seconds=0.1)


class Schedule(ABC):
    """A rule for moments that come again and again: its ticks.

    A naive datetime is a wall clock, and what comes back is one. For an aware one the ticks are
    those of the schedule's time zone, and come back in it; that zone is Django's TIME_ZONE unless
    the schedule has its own.
    """

    def __init__(self, timezone: str | tzinfo | None = None) -> None:
        self.timezone = None if timezone is None else parse_zone(timezone)

    # The text that it is made from, and that stands for it in the database.
    text: str

    @abstractmethod
    def _after(self, moment: datetime, zone: tzinfo) -> datetime:
        """Return the first tick later than the moment, both in UTC, with the clocks of a zone.

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
        zone = UTC if after.tzinfo is None else self.zone
        tick = self._after(_utc(after), zone)
        if until is not None and tick > _utc(until):
            raise ScheduleExhausted(f"{self} has no tick from {after} to {until}.")
        return tick.replace(tzinfo=None) if after.tzinfo is None else tick.astimezone(zone)

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
    def zone(self) -> tzinfo:
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

    Raise DurationError if the period is not a valid duration, ScheduleError if it is too short.
    """

    def __init__(self, period: Any, timezone: str | tzinfo | None = None) -> None:
        super().__init__(timezone)
        self.period = Duration(period)
        if self.period < SHORTEST_PERIOD:
            raise ScheduleError(f"{period!r} is too short a period. Use 0.1 seconds or more.")
        self.text = str(self.period)

    def _after(self, moment: datetime, zone: tzinfo) -> datetime:
        try:
            return EPOCH + ((moment - EPOCH) // self.period + 1) * self.period
        except OverflowError:
            raise ScheduleExhausted from None


class Crontab(Schedule):
    """Ticks that a cron expression of five fields describes, to the minute.

    A fixed time that clocks skip in spring ticks once, at the end of the gap. A fixed time that
    comes twice in autumn ticks the first time only. An expression whose minute or hour begins with
    ``*`` is an interval: it ticks whenever the clock matches. ``~`` is a number that depends on
    `key` alone. Raise CrontabError if the expression is not valid, or its date never comes.
    """

    def __init__(self, spec: str, timezone: str | tzinfo | None = None, key: str = "") -> None:
        super().__init__(timezone)
        if not isinstance(spec, str):
            raise CrontabError(
                f"{spec!r} is not a valid cron expression. Use text such as '30 3 * * 1-5'."
            )
        self.text, self.key = " ".join(spec.split()), key
        self._line = cron.read(spec, key)
        try:
            self._search(ORIGIN)
        except ScheduleExhausted:
            raise CrontabError(f"{spec!r} names a date that never comes.") from None

    def match(self, dt: datetime) -> bool:
        """Tell whether the moment is in the minute of a tick."""
        return super().match(dt.replace(second=0, microsecond=0))

    def _after(self, moment: datetime, zone: tzinfo) -> datetime:
        try:
            if self._line.is_fixed:
                return self._after_by_wall(moment, zone)
            return self._after_by_time(moment, zone)
        except OverflowError:
            raise ScheduleExhausted from None

    def _after_by_wall(self, moment: datetime, zone: tzinfo) -> datetime:
        wall, tick = _wall(moment, zone), moment
        # In the second pass of an hour that comes twice, its ticks have been.
        while tick <= moment:
            wall = self._search(wall)
            tick = _moment_of(wall, zone)
        return tick

    def _after_by_time(self, moment: datetime, zone: tzinfo) -> datetime:
        """Look for what the clock shows, with one offset at a time."""
        while True:
            wall = self._search(_wall(moment, zone)) - _offset(moment, zone)
            tick = wall.replace(tzinfo=UTC)
            near = min(tick, moment + WIDEST_CHANGE)
            if change := _change(moment, near, zone):
                # Nothing ticks before it, and the clock may jump right to a tick.
                wall = _wall(change, zone)
                if self._search(wall - MICROSECOND) == wall:
                    return change
                moment = change
            elif near == tick:
                return tick
            else:
                # No time in between matches, whatever the offset.
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

    The value is a cron expression or alias, a duration (``"15m"``, a timedelta, seconds) or a
    Schedule. Raise CrontabError, DurationError or ScheduleError if it is not valid.
    """
    if isinstance(value, Schedule):
        zone = value.timezone or timezone
        if type(value) is Crontab:
            return Crontab(value.text, zone, key or value.key)
        return Every(value.period, zone) if type(value) is Every else value
    if isinstance(value, str) and (len(value.split()) > 1 or value.strip().startswith("@")):
        try:
            return Every(value, timezone)
        except DurationError:
            return Crontab(value, timezone, key)
    try:
        return Every(value, timezone)
    except DurationError:
        raise ScheduleError(
            f"{short_repr(value)} is not a valid schedule. Use a cron expression such as "
            "'30 3 * * 1-5' or "
            "'@daily', or a duration above zero such as '15m', '1h30m' or a timedelta."
        ) from None
