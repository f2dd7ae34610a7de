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

# A new Crontab must have a tick after this wall clock.
ORIGIN = datetime(2000, 1, 1)  # noqa: DTZ001
# A shorter period is work for a loop inside one task, not for a row at each tick.
SHORTEST_PERIOD = timedelta(seconds=0.1)


class Schedule(ABC):
    """A rule for recurring moments, its ticks. Crontab and Every are the two kinds.

    Given an aware datetime, a method returns aware ticks in the schedule's time zone, which is
    Django's TIME_ZONE unless the schedule has its own. A naive datetime is a wall clock: the ticks
    are naive too, and no time zone counts.
    """

    def __init__(self, timezone: str | tzinfo | None = None) -> None:
        self.timezone = None if timezone is None else parse_zone(timezone)

    # The text that it is made from, as it is stored in the database.
    text: str

    @abstractmethod
    def _after(self, moment: datetime, zone: tzinfo) -> datetime:
        """Return the first tick after the moment by the clocks of the zone; both are in UTC.

        Raise ScheduleExhausted if there is none.
        """

    def match(self, dt: datetime) -> bool:
        """Return whether the moment is a tick."""
        # In UTC, because Python compares two datetimes of one zone by their wall clocks.
        return _utc(self.first(dt)) == _utc(dt)

    def first(self, after: datetime) -> datetime:
        """Return the first tick at `after` or later; raise ScheduleExhausted if there is none.

        If `after` is a tick, it is returned: next() returns a later one.
        """
        return self.next((after if after.tzinfo is None else _utc(after)) - MICROSECOND)

    def next(self, after: datetime | None = None, until: datetime | None = None) -> datetime:
        """Return the first tick later than `after`, which is now by default.

        Raise ScheduleExhausted if there is none, or none up to and including `until`.
        """
        after = datetime.now(UTC) if after is None else after
        zone = UTC if after.tzinfo is None else self.zone
        tick = self._after(_utc(after), zone)
        if until is not None and tick > _utc(until):
            raise ScheduleExhausted(f"{self} has no tick from {after} to {until}.")
        return tick.replace(tzinfo=None) if after.tzinfo is None else tick.astimezone(zone)

    def dates(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the ticks later than `after`, up to and including `until`, in order."""
        while True:
            try:
                after = self.next(after, until)
            except ScheduleExhausted:
                return
            yield after

    def latest(self, after: datetime, until: datetime, count: int) -> list[datetime]:
        """Return the last `count` ticks of dates(), in order, without computing all of them."""
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
        """The schedule's own time zone, else Django's TIME_ZONE."""
        if self.timezone is not None:
            return self.timezone
        # Imported here, because schedules are made in settings.
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
    """A schedule that ticks at whole multiples of a period since the start of 1970 in UTC.

    So the ticks do not depend on when a runner was started. `period` is a duration: seconds, a
    timedelta, or text such as ``"15m"``. Raise DurationError if it is not a valid duration,
    ScheduleError if it is shorter than 0.1 seconds.
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
    """A schedule that ticks as a cron expression says, to the minute.

    `spec` has five fields (minute, hour, day of month, month, day of week), or is an alias such as
    ``"@daily"``. Fields take names, ranges, steps and lists; ``L`` is the last day of the month,
    ``5#3`` the third Friday, ``5L`` the last one, and ``~`` a number that depends on `key` alone.

    A fixed time that clocks skip in spring ticks once, at the end of the gap. A fixed time that
    comes twice in autumn ticks the first time only. An expression whose minute or hour begins with
    ``*`` is an interval: it ticks whenever the clock matches. Raise CrontabError if the expression
    is not valid, or if its date never comes.
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
        """Return whether the moment is in the minute of a tick."""
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
        # In the second pass of an hour that comes twice, its ticks are already over.
        while tick <= moment:
            wall = self._search(wall)
            tick = _moment_of(wall, zone)
        return tick

    def _after_by_time(self, moment: datetime, zone: tzinfo) -> datetime:
        """Search by the wall clock, between one change of the zone's offset and the next."""
        while True:
            wall = self._search(_wall(moment, zone)) - _offset(moment, zone)
            tick = wall.replace(tzinfo=UTC)
            near = min(tick, moment + WIDEST_CHANGE)
            if change := _change(moment, near, zone):
                # No tick comes before the change, and the clock may jump right to a tick.
                wall = _wall(change, zone)
                if self._search(wall - MICROSECOND) == wall:
                    return change
                moment = change
            elif near == tick:
                return tick
            else:
                # No time in between can match, whatever the offset is.
                moment = max(near, tick - WIDEST_CHANGE)

    def _search(self, wall: datetime) -> datetime:
        """Return the first minute after the naive wall clock that matches the expression."""
        start, found = wall.replace(second=0, microsecond=0), []
        for finder in self._finders:
            # A search changes the finder, so each search copies it.
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
    """Return the schedule of a user's value, in `timezone` unless the value has its own.

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
