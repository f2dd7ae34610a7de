"""Importing: a waiting row of another package → READY.

Owns the way from its table into ours: our row is inserted and the other one deleted in one
transaction, so that only one of the two runners can start the task. Never moves a row that the
other runner has locked to start it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models.expressions import RawSQL

from ..base import payload
from ..base.carried import CarriedTask, values_of
from ..base.lengths import MAX_PATH, MAX_QUEUE
from ..base.result import READY, RUNNING
from ..models import Hold, ScheduledTask
from .rows import Place, hold_of
from .sources import Source
from .unit import batches, dialect, pk_text, unit_of_work

# Rows that one transaction moves.
MOVED = 200


class Imported(NamedTuple):
    """What a batch has done."""

    # How many rows go on here, and the places of those that are due, now or later.
    moved: int
    places: list[Place]
    # The ids of rows that stay, because their task path or queue name is too long for our table.
    too_long: list[str]
    # The last id that was read, after which the next batch begins; None if there was no row.
    last: Any


def import_batch(
    source: Source,
    source_db: str,
    db: str,
    *,
    name: str,
    backend: str,
    running: bool = False,
    after: Any = None,
) -> Imported:
    """Move up to 200 waiting rows of the backend `name` into our `backend`, beginning after an id.

    With `running`, rows that are RUNNING are moved as well, with one attempt that was lost. If our
    table has the id already, the other row is only deleted. With two databases both have the row
    until the second one commits.
    """

    def work(*_: Any) -> Imported:
        with transaction.atomic(source_db):
            rows = waiting(source, source_db, name, running)
            rows = rows if after is None else rows.filter(pk__gt=after)
            skips = connections[source_db].features.has_select_for_update_skip_locked
            found = list(rows.select_for_update(skip_locked=skips)[:MOVED])
            tasks = {row.pk: source.read(row)._replace(backend=backend) for row in found}
            fitting = {pk: task for pk, task in tasks.items() if _fits(task)}
            places = _insert(db, list(fitting.values()))
            rows.filter(pk__in=list(fitting))._raw_delete(source_db)
        too_long = [str(task.id) for task in tasks.values() if not _fits(task)]
        return Imported(len(fitting), places, too_long, found[-1].pk if found else None)

    return unit_of_work(source_db, work)


def waiting(source: Source, db: str, name: str, running: bool = False) -> Any:
    """Return the rows of the backend `name` that are READY, or also RUNNING, as a queryset."""
    statuses = (READY, RUNNING) if running else (READY,)
    return source.rows(db).filter(status__in=statuses, **{source.backend: name})


def _fits(task: CarriedTask) -> bool:
    return len(task.task_path) <= MAX_PATH and len(task.queue_name) <= MAX_QUEUE


def _insert(db: str, tasks: Sequence[CarriedTask]) -> list[Place]:
    """Insert the rows whose id is not there; return their places."""
    ours = ScheduledTask.objects.using(db)
    known = set(ours.filter(pk__in=[task.id for task in tasks]).values_list("pk", flat=True))
    rows = [_row(db, task) for task in tasks if task.id not in known]
    with transaction.atomic(db):
        for batch in batches(rows, _chars):
            ours.bulk_create(batch)
    return [
        Place(row.queue_name, row.priority, pk_text(db, row.pk), row.run_after, row.attempt)
        for row in rows
    ]


def _row(db: str, task: CarriedTask) -> ScheduledTask:
    values = values_of(task)
    now = dialect(connections[db]).now(connections[db])
    # promote() removes this hold, at once if the time has come.
    is_due = RawSQL(hold_of("NULL", str(values["lost"]), now), ())
    return ScheduledTask(**values, hold=Hold.SCHEDULED if task.run_after else is_due)


def _chars(row: ScheduledTask) -> int:
    return sum(len(payload.text(value)) for value in (row.args, row.kwargs, row.errors))
