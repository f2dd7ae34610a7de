"""Moments in UTC and wall clocks.

Owns time zones and the changes of their offsets. Never knows a schedule.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from ..exceptions import ScheduleError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, MICROSECOND = timedelta(minutes=1), timedelta(microseconds=1)
# Two offsets of one zone never differed by more, and none changed twice within a quarter of this.
WIDEST_CHANGE = timedelta(hours=26)


def parse_zone(value: str | tzinfo) -> tzinfo:
    """Return the time zone; raise ScheduleError if there is no zone of that name."""
    if value is UTC or isinstance(value, ZoneInfo):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ScheduleError(
            f"{value!r} is not a valid time zone. Use a name such as 'UTC' or 'Europe/Berlin'."
        ) from None


def _utc(moment: datetime) -> datetime:
    """Return the moment in UTC; a naive datetime is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    """Return the wall clock of the zone at that moment."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _moment_of(wall: datetime, zone: tzinfo) -> datetime:
    """Return the moment in UTC when the clocks of the zone first show `wall`, or skip it."""
    here = wall.replace(tzinfo=zone)
    before, after = (here.replace(fold=n).utcoffset() or timedelta() for n in (0, 1))
    if before >= after:
        return here.astimezone(UTC)
    utc = wall.replace(tzinfo=UTC)
    return _change(utc - after, utc - before, zone) or utc - before


def _change(start: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """Return when the zone's offset first changes after `start`, up to `end`; None if never."""
    offset, step = _offset(start, zone), WIDEST_CHANGE / 4
    while _offset(near := min(start + step, end), zone) == offset:
        if near == end:
            return None
        start = near
    while near - start > timedelta(seconds=1):
        middle = start + (near - start) // 2
        if _offset(middle, zone) == offset:
            start = middle
        else:
            near = middle
    return near.replace(microsecond=0)
