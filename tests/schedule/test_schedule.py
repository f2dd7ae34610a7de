"""Schedules: what ticks when, in every zone, in nights when clocks are changed."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim
from django.test import SimpleTestCase, override_settings
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dbtasks import (
    Crontab,
    CrontabError,
    DurationError,
    Every,
    Schedule,
    ScheduleError,
    ScheduleExhausted,
)
from dbtasks.schedule.rules import parse

NEW_YORK, BERLIN = ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")
# Changes of an hour, half an hour, two hours and a whole day; at midnight, twice around Ramadan,
# and never.
ZONES = [
    "America/New_York",
    "Europe/Berlin",
    "Europe/London",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "America/Santiago",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Beirut",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "America/St_Johns",
    "Pacific/Chatham",
    "Asia/Tehran",
    "America/Sao_Paulo",
    "UTC",
]
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def utc(*values: int) -> datetime:
    return datetime(*values, tzinfo=UTC)  # type: ignore[misc,arg-type]


@cache
def changes(zone: str) -> list[datetime]:
    """Return the days on which the zone's offset changes, 2005 to 2030."""
    days = [utc(2005, 1, 1) + n * DAY for n in range(26 * 365)]
    offsets = [day.astimezone(ZoneInfo(zone)).utcoffset() for day in days]
    return [days[n] for n in range(1, len(days)) if offsets[n] != offsets[n - 1]] or [days[99]]


@cache
def minutes(zone: str, day: datetime) -> list[tuple[datetime, datetime]]:
    """Return each minute of five days, in UTC and as the zone's clocks show it."""
    start = day - 3 * DAY
    place = ZoneInfo(zone)
    moments = [start + n * MINUTE for n in range(5 * 1440)]
    return [(at, at.astimezone(place).replace(tzinfo=None, fold=0)) for at in moments]


class Spec:
    """A cron line, and what it means, by the letter."""

    def __init__(self, fields: list[tuple[str, Any]]) -> None:
        self.text = " ".join(text for text, _ in fields)
        self.minutes, self.hours, self.days, self.months, self.weekdays = (f[1] for f in fields)
        texts = self.text.split()
        self.is_fixed = texts[0][0] != "*" and texts[1][0] != "*"
        self.day_or = texts[2][0] != "*" and texts[4][0] != "*"

    def shows(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours:
            return False
        return wall.month in self.months and self.is_day(wall.date())

    @cache  # noqa: B019
    def is_day(self, day: date) -> bool:
        is_last = (day + DAY).month != day.month
        number = day.day in self.days or ("L" in self.days and is_last)
        weekday = day.isoweekday() % 7
        nth, in_last_week = (day.day - 1) // 7 + 1, (day + 7 * DAY).month != day.month
        week = {weekday, (weekday, nth)} | ({(weekday, "L")} if in_last_week else set())
        right = bool(week & self.weekdays)
        return (number or right) if self.day_or else (number and right)

    def ticks(self, zone: str, day: datetime) -> list[datetime]:
        """Return the ticks of five days around the change, by trying every minute."""
        tried = minutes(zone, day)
        if not self.is_fixed:
            return [at for at, wall in tried if self.shows(wall)]
        found: list[datetime] = []
        seen = tried[0][1] - MINUTE
        for at, wall in tried:
            # What the clock shows for the first time, and what it has just skipped.
            while seen < wall:
                seen += MINUTE
                if self.shows(seen) and at not in found[-1:]:
                    found.append(at)
        return found


def numbers(low: int, high: int) -> st.SearchStrategy[tuple[str, Any]]:
    """Return fields of plain numbers."""
    one = st.integers(low, high)
    # Of one number with a step, such as 5-5/2, cronsim has an opinion of its own.
    two = st.lists(one, min_size=2, max_size=2, unique=True).map(sorted)
    ranges = st.tuples(two, st.integers(1, 7)).map(
        lambda v: (f"{v[0][0]}-{v[0][1]}/{v[1]}", set(range(v[0][0], v[0][1] + 1, v[1])))
    )
    steps = st.integers(1, high - low + 1).map(lambda n: (f"*/{n}", set(range(low, high + 1, n))))
    end = 7 if high == 6 else high
    tails = st.tuples(one, st.integers(1, high - low + 1)).map(
        lambda v: (f"{v[0]}/{v[1]}", {n % 7 if end == 7 else n for n in range(v[0], end + 1, v[1])})
    )
    lists = st.lists(one.map(lambda n: (str(n), {n})) | ranges, min_size=1, max_size=3).map(
        lambda parts: (",".join(t for t, _ in parts), set().union(*(s for _, s in parts)))
    )
    return st.just(("*", set(range(low, high + 1)))) | steps | tails | lists


HOURS = numbers(0, 23) | st.sampled_from([(str(n), {n}) for n in (0, 1, 2, 3)])
WEEKDAYS = numbers(0, 6) | st.sampled_from(
    [
        ("5L", {(5, "L")}),
        ("fri#2", {(5, 2)}),
        ("mon-fri", {1, 2, 3, 4, 5}),
        ("7", {0}),
        ("1,5#3", {1, (5, 3)}),
        ("Sun#5,3L", {(0, 5), (3, "L")}),
    ]
)
DAYS = numbers(1, 31) | st.sampled_from([("L", {"L"}), ("15,L", {15, "L"})])
SPECS = st.tuples(numbers(0, 59), HOURS, DAYS, numbers(1, 12), WEEKDAYS).map(
    lambda fields: Spec(list(fields))
)
# Any day: around a change of clocks few lines would tick otherwise.
DAILY = st.tuples(numbers(0, 59), HOURS).map(
    lambda fields: Spec([*fields, ("*", range(32)), ("*", range(13)), ("*", set(range(7)))])
)


class BruteForceTests(SimpleTestCase):
    """Crontab against a walk through all minutes, and against another implementation."""

    @settings(max_examples=100, deadline=None)
    @given(spec=DAILY | SPECS, zone=st.sampled_from(ZONES), n=st.integers(0, 1000))
    def test_ticks_are_those_of_a_walk_through_all_minutes(self, spec: Spec, zone: str, n: int):
        """Around every change of clocks, in every zone."""
        crontab = crontab_of(spec.text, zone)
        days = changes(zone)
        day = days[n % len(days)]
        first, last = day - 1.5 * DAY, day + DAY
        expected = [at for at in spec.ticks(zone, day) if first < at <= last]

        self.assertEqual(expected, [at.astimezone(UTC) for at in crontab.dates(first, last)])

    @settings(max_examples=100, deadline=None)
    @given(
        spec=DAILY | SPECS,
        zone=st.sampled_from(ZONES),
        start=st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1)),
    )
    def test_ticks_are_those_of_cronsim(self, spec: Spec, zone: str, start: datetime):
        """For ten ticks in any year, however far apart."""
        crontab = crontab_of(spec.text, zone)
        start = start.replace(tzinfo=UTC)
        place = ZoneInfo(zone)
        expected = list(islice(oracle(spec.text, start.astimezone(place)), 10))
        found, at = [], start
        for _ in expected:
            found.append(at := crontab.next(at).astimezone(UTC))

        self.assertEqual(expected, found)

    @settings(max_examples=100, deadline=None)
    @given(spec=DAILY | SPECS, start=st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1)))
    def test_naive_in_naive_out(self, spec: Spec, start: datetime):
        """A wall clock that nobody changes."""
        crontab = crontab_of(spec.text, "Europe/Berlin")
        expected = list(islice(CronSim(spec.text, start), 5))
        found, at = [], start
        for _ in expected:
            found.append(at := crontab.next(at))

        self.assertEqual(expected, found)

    @settings(max_examples=50, deadline=None)
    @given(spec=DAILY, zone=st.sampled_from(ZONES), n=st.integers(0, 1000), count=st.integers(1, 9))
    def test_the_latest_ticks_are_the_last_ones(self, spec: Spec, zone: str, n: int, count: int):
        """Found from their end, they are the same."""
        crontab = Crontab(spec.text, zone)
        day = changes(zone)[n % len(changes(zone))]
        expected = list(crontab.dates(day - DAY, day + DAY))[-count:]

        self.assertEqual(expected, crontab.latest(day - DAY, day + DAY, count))


def crontab_of(text: str, zone: str) -> Crontab:
    """Return the crontab; let hypothesis choose another line if its date never comes."""
    try:
        return Crontab(text, zone)
    except CrontabError as error:
        assert "never comes" in str(error), error
        assume(False)
        raise


def oracle(text: str, start: datetime) -> Iterator[datetime]:
    """Yield cronsim's ticks; it yields each of those in a gap, at its end."""
    last = start.astimezone(UTC)
    for tick in CronSim(text, start):
        if (at := tick.astimezone(UTC)) > last:
            yield (last := at)


class NightTests(SimpleTestCase):
    """Nights people ask about, in words."""

    def ticks(self, spec: Any, zone: ZoneInfo, *days: Any) -> list[str]:
        first, last = (datetime(*day, tzinfo=zone) for day in days)
        return [f"{at:%H:%M%z}" for at in parse(spec, zone).dates(first - MINUTE, last - MINUTE)]

    def spring(self, spec: Any) -> list[str]:
        return self.ticks(spec, NEW_YORK, (2026, 3, 8), (2026, 3, 9))

    def autumn(self, spec: Any) -> list[str]:
        return self.ticks(spec, NEW_YORK, (2026, 11, 1), (2026, 11, 2))

    def test_a_fixed_time_that_is_skipped_ticks_at_the_end_of_the_gap(self):
        """Once, however many times of day are skipped."""
        self.assertEqual(["03:00-0400"], self.spring("30 2 * * *"))
        self.assertEqual(["03:00-0400"], self.spring("0,30 2,3 * * *")[:1])
        self.assertEqual(["03:00-0400", "03:30-0400"], self.spring("0,30 2,3 * * *"))

    def test_a_fixed_time_that_comes_twice_ticks_once(self):
        """The first time."""
        self.assertEqual(["01:30-0400"], self.autumn("30 1 * * *"))

    def test_an_interval_follows_the_time_that_passes(self):
        """23 hours on one day, 25 on the other, and no hour without its ticks."""
        self.assertEqual(23 * 4, len(self.spring("*/15 * * * *")))
        self.assertEqual(25 * 4, len(self.autumn("*/15 * * * *")))
        self.assertEqual(25, len(self.autumn("@hourly")))
        self.assertEqual(25, len(self.autumn("1h")))

    def test_midnight_that_does_not_exist(self):
        """Where clocks are set forward at midnight, the day's run comes at one o'clock."""
        zone = ZoneInfo("America/Santiago")
        at = Crontab("@daily", zone).next(datetime(2026, 9, 5, 12, tzinfo=zone))

        self.assertEqual("2026-09-06 01:00:00-03:00", str(at))

    def test_a_day_that_does_not_exist(self):
        """Samoa had no 30 December 2011: its run came when the 31st began."""
        zone = ZoneInfo("Pacific/Apia")
        ticks = Crontab("0 9 30 12 *", zone).dates(utc(2011, 1, 1), utc(2013, 1, 1))

        self.assertEqual(["2011-12-31 00:00", "2012-12-30 09:00"], [f"{t:%F %H:%M}" for t in ticks])

    def test_a_start_in_the_repeated_hour_goes_on_from_there(self):
        """Neither back into the first pass, nor over the rest of the second."""
        start = datetime(2026, 11, 1, 1, 10, tzinfo=NEW_YORK, fold=1)
        at = Crontab("*/5 * * * *", NEW_YORK).next(start)
        before = datetime(2026, 11, 1, 1, 58, tzinfo=NEW_YORK)

        self.assertEqual(timedelta(minutes=5), at.astimezone(UTC) - start.astimezone(UTC))
        self.assertEqual(
            timedelta(minutes=2),
            Crontab("*/5 * * * *", NEW_YORK).next(before).astimezone(UTC) - before.astimezone(UTC),
        )

    def test_first_and_match_in_the_repeated_hour(self):
        """01:00 comes twice: an interval ticks both times, a fixed time once."""
        passes = [datetime(2026, 11, 1, 1, tzinfo=NEW_YORK, fold=fold) for fold in (0, 1)]
        hourly, fixed = Crontab("0 * * * *", NEW_YORK), Crontab("0 1 * * *", NEW_YORK)

        self.assertEqual([True, True], [hourly.match(at) for at in passes])
        self.assertEqual([True, False], [fixed.match(at) for at in passes])
        self.assertEqual(passes[1].astimezone(UTC), hourly.first(passes[1]).astimezone(UTC))

    def test_ticks_rise(self):
        """Through both nights minute by minute, the next tick is later than any moment before."""
        for spec in ("30 2 * * *", "*/7 1-3 * * *", "0 1 * * *", "* * * * *"):
            for day in (utc(2026, 3, 8), utc(2026, 11, 1)):
                crontab = Crontab(spec, NEW_YORK)
                moments = [day + n * MINUTE for n in range(0, 1440, 5)]
                ticks = [crontab.next(at).astimezone(UTC) for at in moments]

                self.assertTrue(all(tick > at for tick, at in zip(ticks, moments, strict=True)))
                self.assertTrue(all(a <= b for a, b in pairwise(ticks)))


class CrontabTests(SimpleTestCase):
    """What a line may be."""

    def test_names_aliases_and_case(self):
        """All ways to write the same line are the same."""
        after = utc(2026, 1, 1)
        for texts in (
            ("30 3 * * 1-5", "30 3 * * MON-Fri", "30 3 * * Monday-friday", " 30  3 * * 1,2,3,4,5 "),
            ("0 0 1 1 *", "@yearly", "@annually", "0 0 1 JAN *", "0 0 1 January *"),
            ("0 0 * * 0", "@weekly", "0 0 * * 7", "0 0 * * sun", "0 0 * * sunday"),
            ("@daily", "@midnight", "0 0 * * *"),
            ("5 0 * * *", "5-5 0 * * *"),
            ("0 0 * * 5L", "0 0 * * L5", "0 0 * * FRIL", "0 0 * * LFRI", "0 0 * * fridayL"),
            ("0 9 1 may *", "0 9 1 5 *", "0 9 1 May *"),
            ("0 0 1 * 1-5", "0 0 1 * 1-5"),
            ("0 0 * * *", "0 0 1-31 * 1", "0 0 13 * 0-6"),
        ):
            ticks = {tuple(Crontab(t, "UTC").dates(after, after + 400 * DAY)) for t in texts}
            with self.subTest(texts):
                self.assertEqual(1, len(ticks))

    def test_wrong_lines_are_errors_with_a_sentence(self):
        """Each names the field and what is allowed."""
        for text, said in {
            "61 * * * *": "Minute '61' is out of range. Use numbers from 0 to 59",
            "* 24 * * *": "Hour '24' is out of range",
            "0 0 0 * *": "Day of month '0' is out of range",
            "0 0 * foo *": "Month 'foo' is not understood",
            "0 0 * janu *": "Month 'janu' is not understood. Use numbers from 1 to 12, or jan,",
            "0 0 * * 8": "Day of week '8' is out of range",
            "0 0 * * fri#6": "Day of week 'fri#6'",
            "*/90 * * * *": "steps by 90, which is not from 1 to 60",
            "*/0 * * * *": "steps by 0",
            "0 22-2 * * *": "runs backwards",
            "9~3 * * * *": "runs backwards",
            "1,,2 * * * *": "Minute '' is not understood",
            "? * * * *": "Minute '?'",
            "0 0 15W * *": "'15w' is not understood",
            "~/5 * * * *": "'~/5' is not understood",
            "* * * *": "It has 4 fields, not five",
            "0 0 0 1 1 *": "It has 6 fields, not five",
            "@reboot": "The aliases are @yearly",
            "@every 5m": "The aliases are",
            "0 0 30 2 *": "a date that never comes",
            "0 0 31 4,6,9,11 *": "a date that never comes",
            "٣ * * * *": "is not understood",
            f"{'1,' * 200}1 * * * *": "more than the 200 characters",
        }.items():
            with self.subTest(text), self.assertRaisesMessage(CrontabError, said):
                Crontab(text)

    def test_a_leap_day_comes(self):
        """Every four years, and after a century without one."""
        crontab = Crontab("0 0 29 2 *", "UTC")

        self.assertEqual(utc(2028, 2, 29), crontab.next(utc(2026, 1, 1)))
        self.assertEqual(utc(2104, 2, 29), crontab.next(utc(2096, 3, 1)))

    def test_tilde_is_a_number_that_the_key_decides(self):
        """The same in every process and after every start; others for other keys."""
        keys = [f"key {n}" for n in range(200)]
        chosen = [Crontab("~ * * * *", "UTC", key).next(utc(2026, 1, 1)).minute for key in keys]
        code = (
            "from dbtasks import Crontab; from datetime import datetime, UTC; "
            "print([Crontab('~ * * * *', 'UTC', f'key {n}').next(datetime(2026, 1, 1, tzinfo=UTC))"
            ".minute for n in range(200)])"
        )
        elsewhere = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        self.assertEqual(str(chosen), elsewhere.stdout.strip())
        self.assertGreater(len(set(chosen)), 40)

    def test_a_range_with_tilde_stays_inside(self):
        """``3~5`` is 3, 4 or 5; a day is one that every month has."""
        for n in range(100):
            at = Crontab("~ 3~5 ~ * *", "UTC", str(n)).next(utc(2026, 1, 31))
            self.assertTrue(3 <= at.hour <= 5 and at.day <= 28, at)


class EveryTests(SimpleTestCase):
    """Intervals."""

    @settings(deadline=None)
    @given(seconds=st.floats(0.1, 1e9), start=st.datetimes(datetime(1975, 1, 1)))
    def test_ticks_are_multiples_of_the_period_since_1970(self, seconds: float, start: datetime):
        """Whenever the process started."""
        every = Every(seconds, "UTC")
        try:
            tick = every.next(start.replace(tzinfo=UTC))
        except (OverflowError, ScheduleExhausted):
            assume(False)

        self.assertEqual(timedelta(0), (tick - utc(1970, 1, 1)) % every.period)
        self.assertTrue(timedelta(0) < tick - start.replace(tzinfo=UTC) <= every.period)

    def test_what_is_no_period_is_an_error(self):
        """Zero, garbage and what is too short, each with a sentence."""
        for value in (0, -1, "forever", "90x", None):
            with self.subTest(value), self.assertRaises(DurationError):
                Every(value)
        with self.assertRaisesMessage(ScheduleError, "0.1 seconds or more"):
            Every(0.01)


class ScheduleTests(SimpleTestCase):
    """What both have in common."""

    def test_a_value_is_read_as_a_line_or_a_duration(self):
        """Text, numbers, timedeltas and schedules."""
        for value, expected in {
            "30 3 * * 1-5": Crontab("30 3 * * 1-5"),
            "@daily": Crontab("@daily"),
            "15m": Every("15m"),
            "1h 30m": Every(5400),
            timedelta(minutes=15): Every(900),
            900: Every("15m"),
            "900": Every("15m"),
        }.items():
            self.assertEqual(expected, parse(value))
        self.assertEqual(Every("15m"), parse(Every("15m")))

    def test_a_value_that_is_neither_is_an_error(self):
        """With a sentence that shows both."""
        for value in ("", "soon", "15x", "-15", None, True, [], {}, "x" * 10_000, b"15m"):
            with self.subTest(value), self.assertRaisesMessage(ScheduleError, "such as '30 3 * *"):
                parse(value)

    def test_an_unknown_zone_is_an_error(self):
        """With a sentence."""
        for name in ("Mars/Olympus", "", "../etc/passwd", 3):
            with (
                self.subTest(name),
                self.assertRaisesMessage(ScheduleError, "is not a valid time zone"),
            ):
                Every("1h", name)  # type: ignore[arg-type]

    @override_settings(TIME_ZONE="Asia/Tokyo")
    def test_the_zone_is_django_s_unless_given(self):
        """Aware in, aware out in the schedule's zone."""
        self.assertEqual("2026-01-02 00:00:00+09:00", str(Crontab("@daily").next(utc(2026, 1, 1))))
        self.assertEqual(
            "2026-01-02 00:00:00+01:00", str(Crontab("@daily", BERLIN).next(utc(2026, 1, 1)))
        )

    def test_a_schedule_may_end(self):
        """No tick up to `until`, or none at all, is ScheduleExhausted."""
        daily = Crontab("@daily", "UTC")
        self.assertEqual(utc(2026, 1, 2), daily.next(utc(2026, 1, 1), until=utc(2026, 1, 2)))
        with self.assertRaises(ScheduleExhausted):
            daily.next(utc(2026, 1, 1), until=utc(2026, 1, 1, 23))
        for schedule in (daily, Every("1w", "UTC")):
            with self.assertRaises(ScheduleExhausted):
                schedule.next(utc(9999, 12, 31, 23, 59))

    def test_first_may_be_the_moment_itself(self):
        """first() is at or after, next() is after."""
        daily = Crontab("@daily", "UTC")
        self.assertEqual(utc(2026, 1, 1), daily.first(utc(2026, 1, 1)))
        self.assertEqual(utc(2026, 1, 2), daily.next(utc(2026, 1, 1)))
        self.assertTrue(Every("15m").match(utc(2026, 1, 1, 0, 15)))
        self.assertFalse(Every("15m").match(utc(2026, 1, 1, 0, 16)))
        self.assertTrue(daily.match(datetime(2026, 1, 1, 0, 0, 30)))

    def test_next_without_a_moment_is_from_now(self):
        """By this machine's clock, aware."""
        self.assertGreater(Every("1h").next(), datetime.now(UTC))

    def test_schedules_are_values(self):
        """Equal, hashable, shown as they are made, and they pickle."""
        for schedule in (
            Crontab("~ 3 * * *", "Europe/Berlin", "k"),
            Every("15m"),
            Every("1h", UTC),
        ):
            self.assertIsInstance(schedule, Schedule)
            self.assertEqual(schedule, pickle.loads(pickle.dumps(schedule)))
            self.assertEqual(1, len({schedule, pickle.loads(pickle.dumps(schedule))}))
        self.assertEqual("Crontab('@daily', timezone='UTC')", repr(Crontab("@daily", "UTC")))
        self.assertEqual("15m", str(Every(900)))
