"""The tables of django-dbtasks, another package with the same app label, become ours.

Owns the operations of the first migration that rename the old tables, make ours and move the rows.
Never runs while an old runner is alive.

PostgreSQL and SQLite roll back everything if the migration is interrupted. MySQL and MariaDB do
not. So each step first looks whether it was done before, and a row is moved in one transaction: at
any time it is either in the old table or in the new one.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError
from django.db import migrations, models, router, transaction
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Length
from django.utils import timezone

from ..base.carried import CarriedTask, values_of
from ..base.lengths import MAX_PATH
from ..base.result import FAILED, READY
from ..models.fields import instant, microseconds
from ..models.foreign import columns, foreign_model
from ..schedule.periodic import MAX_KEY

TASKS, WORKERS = "dbtasks_scheduledtask", "dbtasks_worker"
OLD_TASKS, OLD_WORKERS = "dbtasks_old_scheduledtask", "dbtasks_old_worker"
# The old tables, each with a column that ours does not have, and their names while rows are moved.
RENAMED = ((WORKERS, "last_seen", OLD_WORKERS), (TASKS, "queue", OLD_TASKS))
# What django-dbtasks recorded up to version 0.5. No migration of ours may have one of these names.
OLD_MIGRATIONS = (
    "0001_initial",
    "0002_scheduledtask_delete_after",
    "0003_worker_alter_scheduledtask_backend_and_more",
)
# An old runner that was seen in this time is alive.
SILENCE = timedelta(seconds=60)
# Rows that one transaction moves, and characters that one INSERT carries: far fewer than the 16 MiB
# that MariaDB takes by default.
BATCH = 200
BATCH_CHARS = 4_000_000


class CreateTable(migrations.CreateModel):
    """Creates a table, or what an interrupted run of the migration has left out."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Create the table; if it is there, add the indexes that it lacks."""
        connection = schema_editor.connection
        model = to_state.apps.get_model(app_label, self.name)
        there = columns(connection, model._meta.db_table)
        if schema_editor.collect_sql or not there:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        elif self.allow_migrate_model(connection.alias, model):
            _complete(schema_editor, model, there)


def _complete(schema_editor: Any, model: Any, there: set[str]) -> None:
    """Add indexes and constraints that the table lacks; raise CommandError if it is not ours."""
    table = model._meta.db_table
    if there != {field.column for field in model._meta.local_fields}:
        raise CommandError(
            f"The table {table} exists, but it is not one of this version of dbtasks. If nothing "
            "in it is needed, drop it and run 'manage.py migrate' again."
        )
    with schema_editor.connection.cursor() as cursor:
        known = schema_editor.connection.introspection.get_constraints(cursor, table)
    for index in model._meta.indexes:
        if index.name not in known:
            schema_editor.add_index(model, index)
    for constraint in model._meta.constraints:
        if constraint.name not in known:
            schema_editor.add_constraint(model, constraint)


class _WithOldTables(Operation):
    """An operation on the tables of django-dbtasks. Does nothing if there are none."""

    reduces_to_sql = False
    reversible = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Run the operation, unless a router keeps the app out of this database."""
        alias = schema_editor.connection.alias
        if router.allow_migrate(alias, app_label, model_name="scheduledtask"):
            self.run(schema_editor, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Do nothing: the old tables are gone."""

    def run(self, schema_editor: Any, state: Any) -> None:
        """Do the work."""
        raise NotImplementedError


class RenameOldTables(_WithOldTables):
    """Makes room for our tables. Refuses while an old runner is alive, or if rows cannot move."""

    def run(self, schema_editor: Any, state: Any) -> None:
        """Rename each old table that still has its name."""
        connection = schema_editor.connection
        quote = connection.ops.quote_name
        found = [(old, new) for old, column, new in RENAMED if column in columns(connection, old)]
        for table, _ in found:
            _refuse(connection, table)
        for table, new_name in found:
            schema_editor.execute(f"ALTER TABLE {quote(table)} RENAME TO {quote(new_name)}")
            if connection.vendor == "postgresql":
                # So that the key of the new table gets the usual name.
                index = f"ALTER INDEX IF EXISTS {table}_pkey RENAME TO {new_name}_pkey"
                schema_editor.execute(index)

    def describe(self) -> str:
        """Return what `migrate --plan` shows."""
        return "Rename the tables of django-dbtasks, if there are any"


def _refuse(connection: Any, table: str) -> None:
    """Raise CommandError if the table, or the other old one, cannot be replaced now."""
    if table == WORKERS:
        _refuse_while_alive(connection)
    else:
        _refuse_long_paths(connection)
    with connection.cursor() as cursor:
        introspection = connection.introspection
        for other in set(introspection.table_names(cursor)) - {TASKS, OLD_TASKS}:
            relations = introspection.get_relations(cursor, other)
            if table in {relation[1] for relation in relations.values()}:
                raise CommandError(
                    f"{other} has a foreign key to {table}, a table of django-dbtasks that is "
                    "replaced. Drop this constraint and run 'manage.py migrate' again; then add "
                    "the constraint again."
                )


def _refuse_while_alive(connection: Any) -> None:
    key: models.Field = models.CharField(max_length=200, primary_key=True)
    worker = foreign_model(connection, WORKERS, {"last_seen": models.DateTimeField()}, key)
    now = timezone.now()
    alive = worker.objects.using(connection.alias).filter(last_seen__gt=now - SILENCE)
    seen = [f"{row.pk} ({(now - row.last_seen).total_seconds():.0f} s ago)" for row in alive]
    if seen:
        raise CommandError(
            f"A runner of django-dbtasks was seen less than {SILENCE.seconds} seconds ago: "
            f"{', '.join(seen)}. Stop it, and run 'manage.py migrate' again after a minute. "
            "Nothing was changed."
        )


def _refuse_long_paths(connection: Any) -> None:
    old = _old_model(connection, TASKS).objects.using(connection.alias)
    count = old.annotate(length=Length("task_path")).filter(length__gt=MAX_PATH).count()
    if count:
        raise CommandError(
            f"{count} rows of django-dbtasks have a task_path of more than {MAX_PATH} characters, "
            f"which dbtasks cannot store. Delete them from {TASKS}, and run 'manage.py migrate' "
            "again."
        )


class MoveOldRows(_WithOldTables):
    """Moves the rows of django-dbtasks into our table, and drops its own."""

    def run(self, schema_editor: Any, state: Any) -> None:
        """Move what the old table holds; continue where an interrupted run has stopped."""
        connection = schema_editor.connection
        quote = connection.ops.quote_name
        if columns(connection, OLD_TASKS):
            old = _old_model(connection, OLD_TASKS).objects.using(connection.alias)
            new = state.apps.get_model("dbtasks", "ScheduledTask").objects.using(connection.alias)
            last = None
            while ids := _move(old if last is None else old.filter(pk__gt=last), new):
                last = ids[-1]
            # Before the table is dropped: without it, an interrupted run does not come here again.
            recorded = MigrationRecorder(connection).migration_qs
            recorded.filter(app="dbtasks", name__in=OLD_MIGRATIONS).delete()
            schema_editor.execute(f"DROP TABLE {quote(OLD_TASKS)}")
        if columns(connection, OLD_WORKERS):
            schema_editor.execute(f"DROP TABLE {quote(OLD_WORKERS)}")

    def describe(self) -> str:
        """Return what `migrate --plan` shows."""
        return "Move the rows of django-dbtasks, if there are any"


def _old_model(connection: Any, table: str) -> Any:
    names = ("task_path", "backend", "queue", "status", "exception_path", "traceback")
    times = ("enqueued_at", "run_after", "started_at", "finished_at", "delete_after")
    values = ("args", "kwargs", "worker_ids", "return_value")
    fields: dict[str, models.Field] = {name: models.TextField() for name in names}
    fields |= {name: models.DateTimeField(null=True) for name in times}
    fields |= {name: models.JSONField(null=True) for name in values}
    fields |= {"priority": models.IntegerField(), "periodic": models.BooleanField()}
    return foreign_model(connection, table, fields)


def _move(old: Any, new: Any) -> list[Any]:
    """Move the first rows of the old table, by id; return their ids as the old table has them."""
    with transaction.atomic(old.db, savepoint=False):
        found = list(old.select_for_update().order_by("pk")[:BATCH])
        rows = [_new_values(row) for row in found]
        # They are there if somebody has restored the old table after an interrupted run.
        known = set(new.filter(pk__in=[row["id"] for row in rows]).values_list("pk", flat=True))
        ticks = _ticks(new, rows)
        for part in _parts(row for row in rows if row["id"] not in known):
            new.bulk_create([new.model(**_with_own_tick(row, ticks)) for row in part])
        ids = [row.pk for row in found]
        old.filter(pk__in=ids)._raw_delete(old.db)
    return ids


def _new_values(row: Any) -> dict[str, Any]:
    """Return the columns of the old row as it goes on in our table."""
    failed = row.status == FAILED and row.exception_path
    values = values_of(
        CarriedTask(
            id=UUID(str(row.pk)),
            task_path=row.task_path,
            backend=row.backend,
            queue_name=row.queue,
            priority=row.priority,
            args=row.args,
            kwargs=row.kwargs,
            status=row.status,
            enqueued_at=row.enqueued_at,
            run_after=row.run_after,
            started_at=row.started_at,
            last_attempted_at=row.started_at,
            finished_at=row.finished_at,
            errors=[(row.exception_path, row.traceback)] if failed else [],
            worker_ids=row.worker_ids,
            return_value=row.return_value,
        )
    )
    waits = values["status"] == READY
    # The promotion of scheduled rows removes the hold, at once if the time has come.
    values["hold"] = "scheduled" if waits and row.run_after else ""
    values["delete_after"] = None if waits else getattr(row, "delete_after", None)
    if row.periodic and len(row.task_path) <= MAX_KEY:
        # The path is the key of the schedule. The tick keeps runners from firing it once more.
        tick = instant(microseconds(row.run_after)) if waits and row.run_after else None
        values |= {"schedule_key": row.task_path, "tick": tick}
    return values


def _ticks(new: Any, rows: list[dict[str, Any]]) -> set[Any]:
    """Return backend, key and tick of those rows of our table that may have a tick of these."""
    wanted = [row["tick"] for row in rows if row.get("tick")]
    taken = new.filter(tick__in=wanted).values_list("backend", "schedule_key", "tick")
    return set(taken) if wanted else set()


def _with_own_tick(row: dict[str, Any], ticks: set[Any]) -> dict[str, Any]:
    """Return the row, without its tick if another row has it: old runners could fire one twice."""
    if row.get("tick"):
        tick = (row["backend"], row["schedule_key"], row["tick"])
        if tick in ticks:
            return row | {"tick": None}
        ticks.add(tick)
    return row


def _parts(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in parts that one INSERT can carry."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        texts = [row[name] for name in ("args", "kwargs", "errors", "worker_ids", "return_value")]
        length = len(json.dumps(texts))
        if part and size + length > BATCH_CHARS:
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    if part:
        yield part
