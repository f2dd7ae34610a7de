"""Every write to a row, one transition a function.

Owns the guards: a write names the state it starts from, and where a worker writes, the fence of
its claim. Nothing else in the package changes a row. Never calls task code, sends signals or
knows threads. Times are the database's own, read in the statement.

    enqueue     → READY, held until run_after
    promote     held → due
    claim       due → RUNNING; a suspect alone, by claim_suspect
    settle      RUNNING → SUCCESSFUL, FAILED, or, unless it was cancelled, READY again
                (not started: `unstarted` makes that outcome)
    retry       FAILED → READY
    run_now     scheduled → due
    cancel      READY → FAILED
    request_cancel  RUNNING → RUNNING, asked to end: its runner looks for `cancel_requests`
    purge       finished → deleted
    delete      finished → deleted

Each opens its own transaction and runs again when the database asks for that (deadlock, lock
timeout), except inside a transaction of the caller, which only enqueue and the acts by hand join.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction
from django.db.models import Case, Value, When
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ..exceptions import TaskCancelled
from ..models import (
    FAILED,
    READY,
    RUNNING,
    TABLE,
    WORKERS,
    Hold,
    ScheduledTask,
    ScheduledTaskQuerySet,
)
from ..options import FINISHED
from . import mysql, postgresql, sqlite
from .rows import SUSPECT, Change, Claim, NewTask, Outcome, Pick

__all__ = [
    "Claim",
    "NewTask",
    "Outcome",
    "cancel",
    "cancel_requests",
    "claim",
    "claim_one",
    "claim_suspect",
    "delete",
    "enqueue",
    "key",
    "look",
    "moment",
    "now",
    "promote",
    "purge",
    "purge_older",
    "request_cancel",
    "retry",
    "run_now",
    "settle",
    "unstarted",
]

# Rows one statement may touch: long enough to be cheap a row, short enough to hold no lock long.
BATCH = 500
# Text one settling statement may carry; MySQL's max_allowed_packet is 16 MiB by default.
BATCH_CHARS = 4_000_000
# How often a unit of work is run again when the database rolls it back to break a deadlock.
TRIES = 20

# Vendors, as Django names them, that can hold the queue.
SUPPORTED = ("postgresql", "mysql", "sqlite")
_SQL = {"postgresql": postgresql, "mysql": mysql, "sqlite": sqlite}
_CLAIM = (
    f"UPDATE {TABLE} SET status = '{RUNNING}', hold = '{{hold}}', fence = fence + 1, "
    "attempt = attempt + 1, worker_id = %s, last_attempted_at = {now}"
)
_FINISHED = f"status IN {FINISHED}"
_STARTABLE = f"status = '{READY}' AND hold IN ('', '{Hold.SUSPECT.value}')"
# The middle condition is always true, and the index's own: SQLite does not see it otherwise.
_HELD = f"status = '{READY}' AND NOT (hold = '') AND hold = '{{}}' AND backend = %s"
_SCHEDULED, _SUSPECT = _HELD.format(Hold.SCHEDULED.value), _HELD.format(Hold.SUSPECT.value)
# The hold of a row whose time has come.
_NO_HOLD = f"CASE WHEN lost >= {SUSPECT} THEN '{Hold.SUSPECT.value}' ELSE '' END"
_ALIVE = f"EXISTS (SELECT 1 FROM {WORKERS} WHERE worker_id = %s AND state = 'live')"
_DUE = f"status = '{READY}' AND hold = ''"


def enqueue(db: str, rows: Sequence[NewTask], hint: tuple[str, str] | None = None) -> bool:
    """Insert the rows as READY, in the caller's transaction if there is one: all, or none.

    Return whether the hint, a channel and a word for PostgreSQL's NOTIFY, went with them; there
    may be reasons against it, a transaction among them.
    """
    connection = connections[db]
    sql, rows = _sql(connection), _adapted(connection, rows)
    batches = list(_batches(rows, lambda row: len(row.args) + len(row.kwargs)))
    if len(batches) == 1:
        return bool(sql.insert(connection, batches[0], hint))
    with transaction.atomic(db, savepoint=False):
        for batch in batches:
            sql.insert(connection, batch, None)
    return False


def claim(
    db: str,
    backend: str,
    worker_id: str,
    limit: int,
    queues: Iterable[str] | None = None,
    *,
    registered: bool = False,
    beyond: Claim | None = None,
) -> list[Claim]:
    """Claim up to `limit` due rows for the worker, of those queues or of all.

    Return them highest priority first, then oldest first: already RUNNING and committed. Fewer
    than `limit` does not mean that no more are due; none at all does. A `registered` worker that
    was given up gets nothing: what it took now would be taken from it at once.

    `beyond` an earlier claim, rows of its priority that are older than it are passed over, and
    with them the dead entries that such claims leave at the head of the index.
    """
    picks = _picks(backend, queues)
    in_turn = beyond is not None and len(picks) == 1 and _sql(connections[db]).LEAVES_DEAD
    if beyond is not None and in_turn:
        picks = _beyond(picks[0], beyond.priority, beyond.id)
    if registered:
        picks = tuple(_while_live(pick, worker_id) for pick in picks)
    return _claim(db, worker_id, picks, limit, in_turn=in_turn)


def _beyond(pick: Pick, priority: int, id: Any) -> tuple[Pick, ...]:
    """Return, in claim order, the ranges of the pick's index around that priority's older rows."""
    ranges = {
        "priority > %s": (priority,),
        "priority = %s AND id > %s": (priority, id),
        "priority < %s": (priority,),
    }
    return tuple(
        pick._replace(where=f"{pick.where} AND {condition}", params=(*pick.params, *values))
        for condition, values in ranges.items()
    )


def _picks(backend: str, queues: Iterable[str] | None) -> tuple[Pick, ...]:
    """Return where due rows are: one index range for all queues, or one for each of them."""
    # The last condition is always true, and the index's own: see the model.
    if queues is None:
        where = f"{_DUE} AND backend = %s AND attempt >= 0"
        return (Pick(where, (backend,), "dbtasks_due"),)
    where = f"{_DUE} AND backend = %s AND queue_name = %s AND fence >= 0"
    return tuple(Pick(where, (backend, queue), "dbtasks_due_in_queue") for queue in queues)


def claim_suspect(
    db: str,
    backend: str,
    worker_id: str,
    queues: Iterable[str] | None = None,
    *,
    registered: bool = False,
) -> Claim | None:
    """Claim a row that must start alone, as claim() does; return None if there is none due."""
    pick = _suspects(backend, queues)
    if registered:
        pick = _while_live(pick, worker_id)
    claims = _claim(db, worker_id, (pick,), 1, order="run_after")
    return claims[0] if claims else None


def _while_live(pick: Pick, worker_id: str) -> Pick:
    """Return the pick, of nothing if the worker is not known as live."""
    return pick._replace(where=f"{pick.where} AND {_ALIVE}", params=(*pick.params, worker_id))


def _suspects(backend: str, queues: Iterable[str] | None) -> Pick:
    """Return where rows are that start alone: few, so that a queue needs no index of its own."""
    names = () if queues is None else tuple(queues)
    served = f" AND queue_name IN ({', '.join(['%s'] * len(names))})" if names else ""
    return Pick(_SUSPECT + served, (backend, *names), "dbtasks_held")


def claim_one(
    db: str, backend: str, worker_id: str, id: UUID, hold: Hold = Hold.NONE
) -> Claim | None:
    """Claim the due row with that id and put it on hold; return None if it is not due."""
    where = f"{_STARTABLE} AND backend = %s AND id = %s"
    claims = _claim(db, worker_id, (Pick(where, (backend, key(db, id)), "PRIMARY"),), 1, hold)
    return claims[0] if claims else None


def _claim(
    db: str,
    worker_id: str,
    picks: tuple[Pick, ...],
    limit: int,
    hold: Hold = Hold.NONE,
    *,
    order: str = "priority DESC, id",
    in_turn: bool = False,
) -> list[Claim]:
    def unit(connection: Any, sql: Any) -> tuple[float, list[tuple[Any, ...]]]:
        verb = _CLAIM.format(now=sql.now(connection), hold=hold.value)
        change = Change(verb, (worker_id,), picks, order, limit, in_turn)
        # Read beside the database's clock, which is at the start of the statement.
        connection.ensure_connection()
        clock = time.monotonic()
        return clock, sql.claim(connection, change)

    clock, rows = _unit(db, unit)
    if not rows:
        return []
    # All were claimed at the same moment. RETURNING promises no order.
    claimed_at = moment(db, rows[0][-1])
    claims = [Claim._make((*row[:-1], claimed_at, clock)) for row in rows]
    claims.sort(key=lambda claim: (-claim.priority, claim.id))
    return claims


def settle(db: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write what became of claimed rows; return the ids whose claim still stood.

    A row that moved on since (another fence, or no longer RUNNING) is left as it is, and so is
    one that was to be READY again, but was cancelled while it ran: that is FAILED, by an outcome
    of the caller's.
    """
    written: set[Any] = set()
    for batch in _batches(_adapted(connections[db], outcomes), _chars):
        written |= _unit(db, partial(_settle, batch))
    return written


def _settle(batch: Sequence[Outcome], connection: Any, sql: Any) -> set[Any]:
    ids: set[Any] = sql.settle(connection, batch)
    return ids


def unstarted(db: str, claim: Claim) -> Outcome:
    """Return what becomes of a claimed row whose task was not started, to be settled.

    It is due again at once, and the start that was counted at the claim is taken back.
    """
    started_at = moment(db, claim.started_at)
    return Outcome(
        id=claim.id,
        fence=claim.fence,
        status=READY,
        attempt=claim.attempt - 1,
        failures=claim.failures,
        lost=claim.lost,
        run_after=None,
        started_at=started_at,
        last_attempted_at=started_at and claim.claimed_at,
        finished_at=None,
        delete_after=None,
        errors=claim.errors,
        worker_ids=claim.worker_ids,
        return_value=None,
    )


def promote(db: str, backend: str) -> int:
    """Lift the hold of up to 500 rows whose run_after has come; return how many there were."""

    def unit(connection: Any, sql: Any) -> int:
        where = f"{_SCHEDULED} AND run_after <= {sql.now(connection)}"
        pick = Pick(where, (backend,), "dbtasks_held")
        change = Change(f"UPDATE {TABLE} SET hold = {_NO_HOLD}", (), (pick,), "run_after", BATCH)
        return int(sql.change(connection, change))

    return _unit(db, unit)


class Look(NamedTuple):
    """What a glance at the queue shows."""

    # Whether a row may be claimed now.
    due: bool
    # Whether a row may be claimed that must start alone.
    suspect: bool
    # Seconds until the next held row is due, below 0 if it is already; None if there is none.
    next_due: float | None


def look(db: str, backend: str, queues: Iterable[str] | None = None) -> Look:
    """Glance at the queue in one statement that locks nothing and costs three index probes."""
    connection = connections[db]
    sql, picks, suspects = _sql(connection), _picks(backend, queues), _suspects(backend, queues)
    head = f"(SELECT 1 FROM {TABLE} WHERE {{}} ORDER BY priority DESC, id LIMIT 1)"
    heads = ", ".join(head.format(pick.where) for pick in picks)
    suspect = f"(SELECT 1 FROM {TABLE} WHERE {suspects.where} LIMIT 1)"
    [(due, alone, first, now)] = sql.read(
        connection,
        f"SELECT COALESCE({heads}, 0), COALESCE({suspect}, 0), MIN(run_after), "
        f"{sql.now(connection)} FROM {TABLE} WHERE {_SCHEDULED}",
        [*(value for pick in (*picks, suspects) for value in pick.params), backend],
    )
    first, now = moment(db, first), moment(db, now)
    return Look(bool(due), bool(alone), (first - now).total_seconds() if first and now else None)


def purge(db: str, backend: str) -> int:
    """Delete up to 500 finished rows whose retention is over; return how many there were."""

    def unit(connection: Any, sql: Any) -> int:
        where = f"delete_after <= {sql.now(connection)} AND {_FINISHED} AND backend = %s"
        pick = Pick(where, (backend,), "dbtasks_expired")
        change = Change(f"DELETE FROM {TABLE}", (), (pick,), "delete_after", BATCH)
        return int(sql.change(connection, change))

    return _unit(db, unit)


def delete(db: str, ids: Iterable[UUID], *, expired: bool = False) -> int:
    """Delete those of the rows that are finished; return how many there were.

    Of these only the ones whose retention is over, if `expired` says so.
    """
    rows = _by_hand(db, ids).finished()
    if expired:
        rows = rows.filter(delete_after__lte=now(db))
    # Django's answer to "none of no rows" is None.
    return _unit(db, lambda *_: int(rows._raw_delete(db) or 0))


def purge_older(
    db: str,
    age: timedelta,
    *,
    backend: str | None = None,
    statuses: Iterable[str] = FINISHED,
    batch: int = BATCH,
) -> Iterator[int]:
    """Delete rows that finished longer ago than `age`, oldest first, whatever their retention.

    Yield the number deleted after each batch of at most `batch` rows, a transaction of its own
    each. Rows of one backend, or of all.
    """
    rows = older(db, age, backend=backend, statuses=statuses).order_by("id")
    # The key is in order of age: what finished before the limit was enqueued before it. So the
    # walk along the key needs no index of its own and never reads a row twice.
    last = UUID(int=0)
    while ids := list(rows.filter(id__gt=last).values_list("id", flat=True)[:batch]):
        last = ids[-1]
        doomed = rows.filter(id__in=ids)
        yield _unit(db, lambda *_, doomed=doomed: int(doomed._raw_delete(db)))


def older(
    db: str, age: timedelta, *, backend: str | None = None, statuses: Iterable[str] = FINISHED
) -> ScheduledTaskQuerySet:
    """Return the rows with one of those final statuses that finished longer ago than `age`."""
    rows = ScheduledTask.objects.using(db).finished().filter(status__in=list(statuses))
    rows = rows.filter(finished_at__lt=now(db) - age)
    return rows if backend is None else rows.filter(backend=backend)


def retry(db: str, ids: Iterable[UUID]) -> int:
    """Make those of the rows that are FAILED due again; return how many there were.

    Errors and starts are kept, the counts that limit attempts begin anew, the fence goes on.
    """
    rows = _by_hand(db, ids).filter(status=FAILED)
    fresh = {"failures": 0, "lost": 0, "cancel_requested": False}
    never = {"run_after": None, "finished_at": None, "delete_after": None}
    return _unit(db, lambda *_: rows.update(status=READY, hold=Hold.NONE, **fresh, **never))


def run_now(db: str, ids: Iterable[UUID]) -> int:
    """Make those of the rows that wait for their run_after due; return how many there were."""
    rows = _by_hand(db, ids).filter(status=READY, hold=Hold.SCHEDULED)
    suspect = When(lost__gte=SUSPECT, then=Value(Hold.SUSPECT))
    hold = Case(suspect, default=Value(Hold.NONE))
    return _unit(db, lambda *_: rows.update(hold=hold, run_after=None))


def cancel(
    db: str, ids: Iterable[UUID], retain: Callable[[ScheduledTask], timedelta | None]
) -> int:
    """Finish those of the rows that have not started as FAILED; return how many there were.

    TaskCancelled is added to their errors. `retain` tells how long a row stays.
    """
    ids, at = list(ids), now(db)

    def unit(*_: Any) -> int:
        with transaction.atomic(db):
            rows = _by_hand(db, ids).filter(status=READY)
            return sum(_cancel(db, row, at, retain(row)) for row in rows)

    return _unit(db, unit)


def _cancel(db: str, row: ScheduledTask, at: datetime, stay: timedelta | None) -> int:
    error = (class_path(TaskCancelled), str(TaskCancelled()))
    untouched = _by_hand(db, [row.pk]).filter(status=READY, fence=row.fence)
    return untouched.update(
        status=FAILED,
        hold=Hold.NONE,
        finished_at=at,
        delete_after=stay and at + stay,
        errors=[*(row.errors or []), error],
        unique_slot=None,
    )


def request_cancel(db: str, ids: Iterable[UUID]) -> int:
    """Note on those of the rows that are RUNNING that they are to end; return how many there were.

    A row that was asked before counts too. Whoever runs it sees to it; see settle() and rescue.
    """
    rows = _by_hand(db, ids).filter(status=RUNNING)
    return _unit(db, lambda *_: rows.update(cancel_requested=True))


def cancel_requests(db: str, worker_id: str) -> list[tuple[Any, int]]:
    """Return id and fence, as claims hold them, of the worker's running rows that are to end."""
    connection = connections[db]
    rows = _sql(connection).read(
        connection,
        f"SELECT id, fence FROM {TABLE} WHERE status = '{RUNNING}' AND worker_id = %s "
        "AND cancel_requested",
        [worker_id],
    )
    return [(key(db, id), fence) for id, fence in rows]


def _by_hand(db: str, ids: Iterable[UUID]) -> ScheduledTaskQuerySet:
    return ScheduledTask.objects.using(db).filter(id__in=list(ids))


def now(db: str) -> datetime:
    """Return the database's time."""
    connection = connections[db]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_sql(connection).now(connection)}")
        at = moment(db, cursor.fetchone()[0])
    assert at is not None
    return at


def moment(db: str, value: Any) -> datetime | None:
    """Return a driver's datetime as the ORM would."""
    at = parse_datetime(value) if isinstance(value, str) else value
    if at is None or settings.USE_TZ is timezone.is_aware(at):
        return at
    if settings.USE_TZ:
        return at.replace(tzinfo=connections[db].timezone)
    return timezone.make_naive(at, timezone.get_default_timezone())


def key(db: str, id: UUID) -> Any:
    """Return the id as that database's text of it, which is what claims hold."""
    return str(ScheduledTask._meta.pk.get_db_prep_value(id, connections[db]))


def class_path(kind: type) -> str:
    """Return where the class can be imported from, as Django's TaskError wants it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _sql(connection: Any) -> Any:
    try:
        return _SQL[connection.vendor]
    except KeyError:
        raise ImproperlyConfigured(
            f"dbtasks keeps its queue in PostgreSQL, MySQL, MariaDB or SQLite, not in "
            f"{connection.display_name}. Set OPTIONS['database'] to the alias of one of them."
        ) from None


def _unit[T](db: str, work: Callable[[Any, Any], T]) -> T:
    """Return what the work returns, run as a transaction of its own, again where it must be.

    Inside a caller's transaction it runs once: the database has rolled all of it back.
    """
    connection = connections[db]
    sql = _sql(connection)
    for tried in range(TRIES):
        try:
            return work(connection, sql)
        except OperationalError as error:
            if connection.in_atomic_block or not sql.is_transient(error) or tried == TRIES - 1:
                raise
            # Up to 5 ms, then longer: whoever won needs about that long to commit.
            time.sleep(random.random() * 0.005 * 2 ** min(tried, 6))
    raise AssertionError("unreachable")


def _adapted[T: (NewTask, Outcome)](connection: Any, rows: Sequence[T]) -> Sequence[T]:
    """Return the rows with their datetimes as the driver takes them."""
    if connection.vendor == "postgresql":
        return rows
    adapt = connection.ops.adapt_datetimefield_value
    names = [name for name in rows[0]._fields if name.endswith(("_at", "_after"))] if rows else []
    return [row._replace(**{name: adapt(getattr(row, name)) for name in names}) for row in rows]


def _chars(outcome: Outcome) -> int:
    return sum(len(text) for text in (outcome.errors, outcome.return_value) if text)


def _batches[T](rows: Sequence[T], chars: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the rows in batches that one statement can carry, by their number and characters."""
    batch: list[T] = []
    size = 0
    for row in rows:
        length = chars(row)
        if batch and (len(batch) == BATCH or size + length > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch
