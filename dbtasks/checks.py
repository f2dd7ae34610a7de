"""System checks, which report wrong settings before they do harm.

Owns the checks that look beyond a backend's own OPTIONS, at databases, queues and schedules. Never
opens a connection, so ``manage.py check`` works while the database is away.
"""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections
from django.tasks import DEFAULT_TASK_QUEUE_NAME, task_backends

from .backend import DatabaseBackend
from .base import registry
from .base.lengths import MAX_BACKEND, MAX_QUEUE
from .firing import entries_of, problems
from .options.runner import default_workers
from .store import SUPPORTED

# Connections besides one for each thread: loop, writer, heartbeat, scheduler, purger and report.
OWN_CONNECTIONS = 6


def check_backends(**kwargs: Any) -> list[CheckMessage]:
    """Return what is wrong with the databases and queues of our backends, in TASKS' order."""
    found: list[CheckMessage] = []
    for alias in task_backends.settings:
        backend = task_backends[alias]
        if isinstance(backend, DatabaseBackend):
            found += _check_names(backend)
            # The backend reports wrong options itself. With them the database is unknown.
            if not backend.check():
                found += _check_database(backend.database)
                found += _check_periodic(backend)
    return found


def _check_names(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    where = f"TASKS[{backend.alias!r}]"
    if len(backend.alias) > MAX_BACKEND:
        yield Error(
            f"The alias {backend.alias!r} has more than the {MAX_BACKEND} characters allowed.",
            hint="Give the backend a shorter alias in TASKS.",
            id="dbtasks.E003",
        )
    queues: Any = settings.TASKS[backend.alias].get("QUEUES", [])
    if isinstance(queues, str) or not all(isinstance(name, str) and name for name in queues):
        yield Error(
            f"{where}['QUEUES'] must be a list of names, not {queues!r}.",
            hint="Write ['default', 'mail'], or [] to allow any name.",
            id="dbtasks.E004",
        )
        return
    for name in queues:
        if len(name) > MAX_QUEUE:
            yield Error(
                f"The queue name {name!r} has more than the {MAX_QUEUE} characters allowed.",
                hint=f"Give the queue a shorter name in {where}['QUEUES'].",
                id="dbtasks.E005",
            )
    if queues and DEFAULT_TASK_QUEUE_NAME not in queues:
        yield Warning(
            f"{where}['QUEUES'] does not contain {DEFAULT_TASK_QUEUE_NAME!r}: tasks without a "
            "queue_name are refused.",
            hint=f"Add {DEFAULT_TASK_QUEUE_NAME!r}, or give every task a queue_name.",
            id="dbtasks.W001",
        )


def _check_periodic(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    # Importing task modules registers tasks, and the schedules of decorators.
    registry.discover()
    for sentence in problems(backend):
        yield Error(
            sentence,
            hint="Name a task, and arguments that it takes.",
            id="dbtasks.E010",
        )
    if backend.config.immediate and entries_of(backend):
        yield Warning(
            f"TASKS[{backend.alias!r}] is immediate: no runner serves it, so its schedules never "
            "fire.",
            hint="Move them to a backend that is not immediate.",
            id="dbtasks.W010",
        )


def _check_database(db: str) -> Iterator[CheckMessage]:
    connection = connections[db]
    where = f"DATABASES[{db!r}]['OPTIONS']"
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor not in SUPPORTED:
        yield Error(
            f"dbtasks cannot keep its queue in {connection.display_name} (DATABASES[{db!r}]).",
            hint="Use PostgreSQL, MySQL, MariaDB or SQLite; OPTIONS['database'] chooses the alias.",
            id="dbtasks.E006",
        )
    elif connection.vendor == "sqlite" and options.get("transaction_mode") != "IMMEDIATE":
        yield Warning(
            f"{where} does not contain 'transaction_mode': 'IMMEDIATE'. A transaction that reads "
            "before it writes fails with 'database is locked' when a runner writes.",
            hint=f"Set {where}['transaction_mode'] = 'IMMEDIATE'.",
            id="dbtasks.W002",
        )
    elif connection.vendor == "mysql":
        level = options.get("isolation_level", "read committed")
        if str(level).lower() != "read committed":
            yield Warning(
                f"{where}['isolation_level'] is {level!r}. Runners and enqueue() lock more than "
                "their rows and cause deadlocks.",
                hint="Use Django's default, 'read committed'.",
                id="dbtasks.W003",
            )
    yield from check_pool(db, default_workers())


def check_pool(db: str, workers: int) -> Iterator[CheckMessage]:
    """Yield a warning if that database's connection pool is too small for so many threads."""
    pool = connections[db].settings_dict.get("OPTIONS", {}).get("pool")
    if not pool:
        return
    # psycopg_pool's own defaults: min_size is 4, max_size is min_size.
    sizes = pool if isinstance(pool, dict) else {}
    size = sizes.get("max_size") or sizes.get("min_size", 4)
    if size < workers + OWN_CONNECTIONS:
        yield Warning(
            f"The connection pool of DATABASES[{db!r}] holds {size} connections; a runner with "
            f"{workers} threads needs {workers + OWN_CONNECTIONS}.",
            hint=f"Set DATABASES[{db!r}]['OPTIONS']['pool']['max_size'] to at least that.",
            id="dbtasks.W004",
        )
