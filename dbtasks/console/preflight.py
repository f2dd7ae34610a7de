"""What a command checks before it starts: backend, queues, database.

Owns the message about each problem. Never changes anything.
"""

from collections.abc import Sequence

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from ..backend import DatabaseBackend, check_backend, our_backends
from ..base.lengths import MAX_QUEUE
from ..checks import check_pool
from ..exceptions import RunnerError
from ..models import ScheduledTask
from .terminal import one_line


def check_queues(backend: DatabaseBackend, queues: Sequence[str] | None) -> None:
    """Raise CommandError if the backend cannot have one of the queues."""
    for queue in queues or ():
        if backend.queues and queue not in backend.queues:
            known = ", ".join(map(repr, sorted(backend.queues)))
            raise CommandError(
                f"There is no queue {queue!r} in TASKS[{backend.alias!r}]['QUEUES']. Use {known}, "
                "or add it there."
            )
        if not 1 <= len(queue) <= MAX_QUEUE:
            raise CommandError(
                f"{queue!r} is not a valid queue name. Use 1 to {MAX_QUEUE} characters for --queue."
            )


def one_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise CommandError if no runner can serve it."""
    try:
        return check_backend(alias)
    except (ImproperlyConfigured, RunnerError) as error:
        raise CommandError(str(error)) from error


def chosen_backends(alias: str | None) -> list[DatabaseBackend]:
    """Return our backend of that alias, or all of ours; raise CommandError if it is not ours."""
    ours = our_backends()
    chosen = [backend for backend in ours if alias in (None, backend.alias)]
    if alias is not None and not chosen:
        known = ", ".join(repr(backend.alias) for backend in ours) or "none"
        raise CommandError(f"There is no dbtasks backend {alias!r} in TASKS. Choose from: {known}.")
    return chosen


def ready_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise CommandError if its table cannot be read."""
    backend = one_backend(alias)
    check_database(backend.database)
    return backend


def check_connection(db: str) -> None:
    """Raise CommandError if the database cannot be reached."""
    try:
        connections[db].ensure_connection()
    except (DatabaseError, ImproperlyConfigured) as error:
        raise CommandError(
            f"The database {db!r} cannot be reached: {one_line(error)} Check DATABASES[{db!r}] "
            "and that the server runs."
        ) from error


def check_database(db: str) -> None:
    """Raise CommandError if the database cannot be reached, or is not migrated."""
    check_connection(db)
    try:
        ScheduledTask.objects.using(db).first()
    except DatabaseError as error:
        where = "" if db == DEFAULT_DB_ALIAS else f" --database {db}"
        raise CommandError(
            f"The database {db!r} lacks the table of dbtasks, or has that of another version: "
            f"{one_line(error)} Run 'manage.py migrate{where}' first."
        ) from error


def small_pool(db: str, threads: int) -> str | None:
    """Return a warning if the connection pool cannot serve that many threads, else None."""
    return next((f"{warning.msg} {warning.hint}" for warning in check_pool(db, threads)), None)
