"""Hints: which push a backend has, whether this process sends any, and which hints rows get.

Owns tell(), through which every hint goes. Never raises, and never writes to the database.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import batched
from math import log2
from typing import Any
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from .. import store
from ..push import Hint, Push
from ..store import Place
from .guard import Sender, commit_end, in_words, sender_of

# A service that can hold a hint for this long gets hints for rows that are due later still.
SENT_ON = timedelta(days=1)
# The most drain hints of one commit, for each queue.
MAX_DRAINS = 16
# A drain hint that comes before its rows are due, because clocks differ, would find nothing.
DRAIN_MARGIN = timedelta(seconds=2)


def push_of(backend: str) -> Push | None:
    """Return the push of that backend by TASKS; None if it has none, is immediate or not valid."""
    backends: Any = settings.TASKS
    options = backends.get(backend, {}).get("OPTIONS")
    if not isinstance(options, Mapping) or options.get("immediate"):
        return None
    push = options.get("push")
    return push if isinstance(push, Push) else None


def tell(push: Push, hints: Sequence[Hint], *, end: float | None = None) -> int:
    """Send the hints, all of one backend, if this process sends any; return how many were sent.

    A hint for a row that is due later than the service can hold it is sent for the latest time that
    it can, if that is a day or more, else not. Returns in less than three seconds, or at `end` on
    the monotonic clock. Raises nothing: what is not sent is logged, and a sweep finds the rows.
    Call it after the commit.
    """
    if not hints:
        return 0
    sender = sender_of(hints[0].backend)
    with _quiet(sender):
        if is_sending(push, sender):
            calls = list(batched(_sendable(push, hints), max(1, push.batch)))
            return sender.send(push, calls, end) if calls else 0
    return 0


def tell_places(
    push: Push,
    backend: str,
    places: Sequence[Place],
    *,
    is_promotion: bool = False,
    commit: "Commit | None" = None,
) -> int:
    """Send the hints that these committed rows need; return how many were sent.

    `is_promotion` is whether the rows were scheduled: their hints may have been sent long ago.
    `commit` is theirs, if it wrote other rows as well.
    """
    hints: list[Hint] = []
    sender, commit = sender_of(backend), commit or Commit()
    end = commit.end()
    with _quiet(sender):
        if (is_promotion and is_sent_on(push)) or not places or not is_sending(push, sender):
            return 0
        hints = commit.hints(backend, places, push.bulk)
    return tell(push, hints, end=end)


class Commit:
    """A commit: the time that the hints of all its rows may take, and which of them it has.

    Its rows come in several parts if savepoints wrote them. Parts that were rolled back never come.
    """

    def __init__(self) -> None:
        self._end: float | None = None
        # By backend.
        self._rows: Counter[str] = Counter()
        # By backend and queue: drain hints so far, and the further due rows that they are for.
        self._drains: Counter[tuple[str, str]] = Counter()
        self._spare: Counter[tuple[str, str]] = Counter()

    def end(self) -> float:
        """Return when that time is over. It begins with the first call."""
        if self._end is None:
            self._end = commit_end()
        return self._end

    def hints(self, backend: str, places: Sequence[Place], bulk: int | None) -> list[Hint]:
        """Return the hints that these further rows need.

        A drain hint for due rows is also for those that come after it: all are committed.
        """
        self._rows[backend] += len(places)
        if bulk is None or self._rows[backend] <= bulk:
            return [_hint(backend, place) for place in places]
        bulk = max(1, bulk)
        later = [place for place in places if place.run_after is not None]
        if len(places) > bulk:
            found = _drains(backend, later, bulk)
        else:
            found = [_hint(backend, place) for place in later]
        due = Counter(place.queue_name for place in places if place.run_after is None)
        for queue_name, count in due.items():
            key = backend, queue_name
            wanted = max(0, -(-(count - self._spare[key]) // bulk))
            drains = min(wanted, MAX_DRAINS - self._drains[key])
            self._drains[key] += drains
            self._spare[key] += drains * bulk - count
            found += [Hint(None, backend, queue_name)] * drains
        return found


def tell_late(db: str, backend: str, push: Push) -> int:
    """Send a further hint for each row that late_hints() finds; return how many were sent."""
    if not is_sending(push, sender_of(backend)):
        return 0
    return tell(push, late_hints(db, backend, push))


def late_hints(db: str, backend: str, push: Push) -> list[Hint]:
    """Return a further hint for each row that has been due for longer than `push.late` seconds.

    Looks at the first 100 due rows in the order of claims, and at quarantined ones. `again` is 1
    from `late` seconds on, 2 from twice that, 3 from four times: a service that refuses a name it
    has seen gets each name of a row once, however many sweeps there are.
    """
    late = Push.late
    with _quiet(sender_of(backend)):
        late = max(1.0, push.late)
    return [
        _hint(backend, place)._replace(again=1 + int(log2(seconds / late)))
        for place, seconds in store.waiting(db, backend)
        if seconds >= late
    ]


@contextmanager
def _quiet(sender: Sender) -> Iterator[None]:
    """Log what the block raises, once, instead of raising it: the rows are written already."""
    try:
        yield
    except Exception as error:  # an attribute of the push has a wrong type
        sender.explain(
            logging.WARNING, f"the push is not valid, {in_words(error)}. Run manage.py check."
        )


def sending_push_of(backend: str) -> Push | None:
    """Return the push of that backend if this process sends hints, else None."""
    push = push_of(backend)
    return push if push is not None and is_sending(push, sender_of(backend)) else None


def is_sent_on(push: Push) -> bool:
    """Return whether rows of any later time get their hint when they are written."""
    return push.longest is None or push.longest >= SENT_ON


def _hint(backend: str, place: Place) -> Hint:
    id = str(UUID(str(place.id)))
    return Hint(id, backend, place.queue_name, place.attempt, place.run_after)


def _drains(backend: str, places: Sequence[Place], bulk: int) -> list[Hint]:
    """Return one drain hint for each `bulk` rows of a queue that are due later, 16 at most.

    Each is for the time of the last row of its share, and a moment more.
    """
    shares: dict[str, list[datetime]] = {}
    for place in places:
        if (at := aware(place.run_after)) is not None:
            shares.setdefault(place.queue_name, []).append(at)
    hints = []
    for queue_name, times in shares.items():
        count = min(MAX_DRAINS, -(-len(times) // bulk))
        ordered = sorted(times)
        # The last row of each share.
        ends = [(n * len(times)) // count - 1 for n in range(1, count + 1)]
        hints += [
            Hint(None, backend, queue_name, run_after=ordered[n] + DRAIN_MARGIN) for n in ends
        ]
    return hints


def aware(at: datetime | None) -> datetime | None:
    """Return the time as an aware one; with USE_TZ=False it is one of the default time zone."""
    if at is None or timezone.is_aware(at):
        return at
    return timezone.make_aware(at, timezone.get_default_timezone())


def is_sending(push: Push, sender: Sender) -> bool:
    """Return whether this process sends hints: never in a test, else where `push` is at home.

    The environment variable DBTASKS_PUSH, "on" or "off", wins over is_at_home().
    """
    if is_test_environment():
        return False
    wanted = os.environ.get("DBTASKS_PUSH", "").strip().lower()
    if wanted:
        if wanted not in ("on", "off"):
            sender.explain(logging.WARNING, "DBTASKS_PUSH must be 'on' or 'off'.")
        return wanted == "on"
    try:
        is_at_home = push.is_at_home()
    except Exception as error:  # whatever a project's own class raises
        sender.explain(logging.WARNING, f"is_at_home() raised {in_words(error)}.")
        return False
    if not is_at_home:
        sender.explain(
            logging.INFO,
            "this process does not run where they are meant to be sent. DBTASKS_PUSH=on sends "
            "them all the same.",
        )
    return is_at_home


def is_test_environment() -> bool:
    """Return whether Django's setup_test_environment() is in force."""
    # Importing the module would load Django's test client in every process.
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")


def _sendable(push: Push, hints: Sequence[Hint]) -> list[Hint]:
    """Return the hints as the service can hold them, without those that it cannot hold."""
    now, found = datetime.now(UTC), []
    for hint in hints:
        at = aware(hint.run_after)
        if at is None or at <= now:
            found.append(hint._replace(run_after=None))
        elif push.longest is None or at - now <= push.longest:
            found.append(hint._replace(run_after=at))
        elif is_sent_on(push):
            found.append(hint._replace(run_after=now + push.longest))
    return found
