"""The tables of other packages that `manage.py dbtasks import` reads.

Owns their names, their columns, and what a row of each means. Never imports the other package, and
never writes to a table.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections, models

from ..base.carried import CarriedTask
from ..models.foreign import columns, foreign_model

# The year in which django-tasks-db lets a task without run_after begin.
NEVER = 9999


class Source(NamedTuple):
    """The table of another package."""

    table: str
    # The column with the name of the row's backend.
    backend: str
    # The types of the columns that are read.
    times: tuple[str, ...]
    texts: tuple[str, ...]
    jsons: tuple[str, ...]
    read: Callable[[Any], CarriedTask]

    def missing(self, db: str) -> set[str]:
        """Return the columns that the table lacks: all of them if there is no table."""
        return set(self._fields_by_name()) - columns(connections[db], self.table)

    def rows(self, db: str) -> Any:
        """Return the table's rows as a queryset, by id."""
        model = foreign_model(connections[db], self.table, self._fields_by_name())
        return model.objects.using(db).order_by("pk")

    def _fields_by_name(self) -> dict[str, models.Field]:
        fields: dict[str, models.Field] = {
            "status": models.CharField(max_length=20),
            "priority": models.IntegerField(),
        }
        fields |= {name: models.DateTimeField(null=True) for name in self.times}
        fields |= {name: models.TextField() for name in self.texts}
        return fields | {name: models.JSONField(null=True) for name in self.jsons}


def _django_tasks_db(row: Any) -> CarriedTask:
    run_after: datetime | None = row.run_after
    return CarriedTask(
        id=UUID(str(row.pk)),
        task_path=row.task_path,
        backend=row.backend_name,
        queue_name=row.queue_name,
        priority=row.priority,
        args=row.args_kwargs["args"],
        kwargs=row.args_kwargs["kwargs"],
        status=row.status,
        enqueued_at=row.enqueued_at,
        run_after=run_after if run_after and run_after.year < NEVER else None,
        started_at=row.started_at,
        last_attempted_at=row.started_at,
        finished_at=None,
        errors=[],
        worker_ids=row.worker_ids,
        return_value=None,
    )


def _django_database_task(row: Any) -> CarriedTask:
    return CarriedTask(
        id=UUID(str(row.pk)),
        task_path=row.task_path,
        backend=row.backend_name,
        queue_name=row.queue_name,
        priority=row.priority,
        args=row.args_json,
        kwargs=row.kwargs_json,
        status=row.status,
        enqueued_at=row.enqueued_at,
        run_after=row.run_after,
        started_at=row.started_at,
        last_attempted_at=row.last_attempted_at,
        finished_at=None,
        errors=[(error["exception_class_path"], error["traceback"]) for error in row.errors_json],
        worker_ids=row.worker_ids_json,
        return_value=None,
    )


# By the name of the package, as one imports it.
SOURCES = {
    "django_tasks_db": Source(
        table="django_tasks_database_dbtaskresult",
        backend="backend_name",
        times=("enqueued_at", "started_at", "run_after"),
        texts=("task_path", "queue_name", "backend_name"),
        jsons=("args_kwargs", "worker_ids"),
        read=_django_tasks_db,
    ),
    "django_database_task": Source(
        table="django_database_task_databasetask",
        backend="backend_name",
        times=("enqueued_at", "started_at", "last_attempted_at", "run_after"),
        texts=("task_path", "queue_name", "backend_name"),
        jsons=("args_json", "kwargs_json", "errors_json", "worker_ids_json"),
        read=_django_database_task,
    ),
}
