"""What goes into the store and what comes out of it.

Owns the plain tuples that the transitions take and return, their fields in the order of the SQL,
and the one statement that all databases share. Never imports models, settings or a database.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

# A row with this many lost workers runs alone. Two losses may be the fault of another task, and
# most often are nobody's: a machine went down, a runner was killed.
QUARANTINE_AFTER = 2
# The end of an attempt also sets these: no worker runs the row, and a request to cancel it is done.
SETTLED = "worker_id = NULL, cancel_requested = FALSE"


class NewTask(NamedTuple):
    """A row to insert. JSON columns are text already."""

    id: Any
    task_path: str
    backend: str
    queue_name: str
    priority: int
    args: str
    kwargs: str
    policy: str | None
    meta: str | None
    enqueued_at: datetime
    run_after: datetime | None


class Claim(NamedTuple):
    """A row this worker has claimed: RUNNING, committed, and guarded by its fence.

    Values are as the driver gives them; JSON columns are text.
    """

    id: Any
    fence: int
    task_path: str
    queue_name: str
    priority: int
    args: str
    kwargs: str
    policy: str | None
    meta: str | None
    enqueued_at: Any
    run_after: Any
    started_at: Any
    attempt: int
    failures: int
    lost: int
    releases: int
    errors: str | None
    worker_ids: str | None
    return_value: str | None
    # The due time of a schedule's row, in microseconds since 1970.
    tick: int | None
    # The time of the claim, on the database's clock and on this process's monotonic clock.
    claimed_at: Any
    clock: float


class Outcome(NamedTuple):
    """The new state of an attempt's row: every column that the settling write sets.

    `id` and `fence` name the claim that guards the write.
    """

    id: Any
    fence: int
    status: str
    attempt: int
    failures: int
    lost: int
    releases: int
    run_after: Any
    started_at: Any
    last_attempted_at: Any
    finished_at: Any
    delete_after: Any
    errors: str | None
    worker_ids: str | None
    return_value: str | None


def delete_after(at: datetime, stay: timedelta | None) -> datetime | None:
    """Return when the purge may delete a row that finished at `at`; None if it is kept for ever."""
    return None if stay is None else at + stay


def hold_of(run_after: str, lost: str, now: str) -> str:
    """Return SQL for the hold of a READY row, from SQL for these columns and for the clock.

    This is the one place that decides why a READY row may not be claimed yet.
    """
    return (
        f"CASE WHEN {run_after} > {now} THEN 'scheduled' "
        f"WHEN {lost} >= {QUARANTINE_AFTER} THEN 'quarantined' ELSE '' END"
    )


_QUEUE = "SELECT queue_name FROM {table} WHERE {where}%s ORDER BY queue_name LIMIT 1"
# The names of queues that have rows of a condition, which is written twice: one probe of the index
# for each queue.
QUEUES = (
    f"WITH RECURSIVE v(name) AS (SELECT * FROM ({_QUEUE % ''}) one UNION ALL "
    f"SELECT ({_QUEUE % ' AND queue_name > v.name'}) FROM v WHERE v.name IS NOT NULL) "
    "SELECT name FROM v WHERE name IS NOT NULL"
)

# The settling write of one row, and its guards. The CASE keeps planners on the primary key: if the
# statistics show no RUNNING row, they would otherwise read the index of running rows.
SETTLE = (
    f"UPDATE {{table}} SET {', '.join(f'{name} = %s' for name in Outcome._fields[2:])}, {SETTLED}, "
    "hold = CASE WHEN %s = 'READY' THEN {hold} ELSE '' END WHERE "
)
STANDING = (
    "id = %s AND CASE status WHEN 'RUNNING' THEN fence END = %s "
    "AND NOT (cancel_requested AND %s = 'READY')"
)


def settling(o: Outcome) -> tuple[Any, ...]:
    """Return the parameters of SETTLE and STANDING."""
    return (*o[2:], o.status, o.run_after, o.lost, o.id, o.fence, o.status)


class Place(NamedTuple):
    """A row's place in the order of claims: its queue, its priority, and its id as claims hold it.

    Within a queue, or across all of them, the highest priority comes first, then the lowest id.
    """

    queue_name: str
    priority: int
    id: Any
    # When the row will be due, aware, or naive with USE_TZ=False; None if it is due.
    run_after: datetime | None = None
    # How often it has been started, where that is known.
    attempt: int = 0


class Pick(NamedTuple):
    """Rows to choose from: a condition with its parameters, and the index that serves it."""

    where: str
    params: tuple[Any, ...]
    served_by: str


class Change(NamedTuple):
    """An ``UPDATE … SET …`` or ``DELETE FROM …`` of the first rows of some picks, in order."""

    verb: str
    params: tuple[Any, ...]
    picks: tuple[Pick, ...]
    order: str
    limit: int
    # True if the rows of each pick come before those of the next.
    in_turn: bool = False

    @property
    def column(self) -> str:
        """The first column of the order."""
        return self.order.split(",")[0].split()[0]
