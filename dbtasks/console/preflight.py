"""What a command checks before it starts: backend, queues, database.

Owns the message about each problem. Never changes anything.
"""

from collections.abc import Sequence

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.tasks import task_backends

from .. import store
from ..backend import DatabaseBackend, check_backend, our_backends
from ..base.lengths import MAX_QUEUE
from ..base.queues import ALL
from ..checks import check_autocommit, check_pool
from ..exceptions import DBTasksError, RunnerError
from ..store import Trouble
from .terminal import one_line


class DatabaseNotReady(DBTasksError):
    """The database cannot be used yet. It may be later, so a supervisor tries again."""


def check_queues(
    backend: DatabaseBackend, queues: Sequence[str] | None, excluded: Sequence[str] | None = None
) -> None:
    """Raise CommandError if the backend cannot have one of the queues, or none is left."""
    for queue in (*(queues or ()), *(excluded or ())):
        if queue == ALL:
            continue
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
    if backend.queues and backend.queues <= set(excluded or ()):
        raise CommandError(
            f"No queue of TASKS[{backend.alias!r}]['QUEUES'] is left to serve: all are excluded."
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
        _connect(db)
    except DatabaseNotReady as error:
        raise CommandError(str(error)) from error


def check_settings() -> None:
    """Raise CommandError if a backend in TASKS cannot be loaded."""
    for alias in task_backends.settings:
        try:
            task_backends[alias]
        except Exception:  # whatever it is, in the words for a backend that was chosen
            one_backend(alias)


def check_database(db: str, *, writes: bool = True) -> None:
    """Raise CommandError if the database cannot be reached, is not migrated, or refuses writes.

    Without `writes` it may refuse them.
    """
    try:
        try_database(db, writes=writes)
    except DatabaseNotReady as error:
        raise CommandError(str(error)) from error


def try_database(db: str, *, writes: bool = True) -> None:
    """Raise DatabaseNotReady where check_database() raises CommandError."""
    for message in check_autocommit(db) if writes else ():
        raise DatabaseNotReady(f"{message.msg} {message.hint}")
    _connect(db)
    if found := store.probe(db, writes=writes):
        trouble, error = found
        where = "" if db == DEFAULT_DB_ALIAS else f" --database {db}"
        raise DatabaseNotReady(
            TROUBLES[trouble].format(f"The database {db!r}", one_line(error), where)
        ) from error


# What is said of the database, its error, and the flag for `migrate`.
TROUBLES = {
    Trouble.READ_ONLY: "{} is read-only: {} Runners write to it; use one that takes writes.",
    Trouble.DENIED: "{} refuses its user: {} Grant it SELECT, INSERT, UPDATE and DELETE on the "
    "tables of dbtasks.",
    Trouble.MISSING: "{} lacks the table of dbtasks, or has that of another version: {} Run "
    "'manage.py migrate{}' first.",
    Trouble.IN_MEMORY: "{} is in memory, so each process has its own, which is empty: {} Use a "
    "file, or a server.",
    Trouble.DAMAGED: "{} is not a valid SQLite file: {} Check its NAME in DATABASES.",
    Trouble.UNKNOWN: "{} does not let the table of dbtasks be used: {}",
}


def _connect(db: str) -> None:
    try:
        connections[db].ensure_connection()
    except (DatabaseError, ImproperlyConfigured) as error:
        raise DatabaseNotReady(
            f"The database {db!r} cannot be reached: {one_line(error)} Check DATABASES[{db!r}] "
            "and that the server runs."
        ) from error


def small_pool(db: str, threads: int) -> str | None:
    """Return a warning if the connection pool cannot serve that many threads, else None."""
    return next((f"{warning.msg} {warning.hint}" for warning in check_pool(db, threads)), None)
