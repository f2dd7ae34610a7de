"""``manage.py dbtasks import``: move the waiting tasks of another package into our table."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Count

from ...backend import DatabaseBackend
from ...base.result import READY, RUNNING
from ...console import flags, preflight
from ...store import importing
from ...store.sources import SOURCES, Source

HELP = "Import the tasks that wait in the table of another package."

# Rounds over the table, and seconds between two of them, before rows count as left behind.
ROUNDS = 10
PAUSE = 0.3


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments: which package, from where and into what."""
    parser.add_argument(
        "package", choices=SOURCES, help="The package: django_tasks_db or django_database_task."
    )
    flags.add_backend(parser, "Alias in TASKS that runs the tasks from now on (default: default).")
    parser.add_argument(
        "--from-backend",
        metavar="ALIAS",
        help="Alias under which the tasks were enqueued (default: that of --backend).",
    )
    parser.add_argument(
        "--from-database",
        metavar="ALIAS",
        help="Alias in DATABASES of the package's table (default: the database of --backend).",
    )
    parser.add_argument(
        "--running",
        action="store_true",
        help="Import RUNNING tasks as well: they start again. Stop the other workers first.",
    )


def handle(command: BaseCommand, options: dict[str, Any]) -> int:
    """Move the rows; return 0 if none stays behind, else 1."""
    backend = preflight.ready_backend(options["backend"])
    package, db = options["package"], options["from_database"] or backend.database
    source, name = SOURCES[package], options["from_backend"] or backend.alias
    preflight.check_connection(db)
    _check_table(package, source, db)
    count, too_long = _import(backend, source, db, name, options["running"])
    if options["verbosity"]:
        command.stdout.write(f"Imported {_tasks(count)} of {package} into {backend.alias!r}.")
    left = [*_too_long(too_long), *_left(source, db, name, len(too_long))]
    for line in left:
        command.stderr.write(line)
    return 1 if left else 0


def _check_table(package: str, source: Source, db: str) -> None:
    missing = source.missing(db)
    if missing:
        raise CommandError(
            f"The database {db!r} has no table {source.table} with the columns "
            f"{', '.join(sorted(missing))}. Install the latest {package} and run its migrations, "
            "or name another database by --from-database."
        )


def _import(
    backend: DatabaseBackend, source: Source, db: str, name: str, running: bool
) -> tuple[int, list[str]]:
    """Move all rows; return how many, and the ids of those that are too long for us.

    A worker that looks for a task may lock all rows for a moment, so several rounds are made.
    """
    count = 0
    for _ in range(ROUNDS):
        moved, too_long = _round(backend, source, db, name, running)
        count += moved
        if importing.waiting(source, db, name, running).count() <= len(too_long):
            break
        time.sleep(PAUSE)
    return count, too_long


def _round(
    backend: DatabaseBackend, source: Source, db: str, name: str, running: bool
) -> tuple[int, list[str]]:
    """Move the rows in batches, from the first id to the last, without those that are locked."""
    count, last = 0, None
    too_long: list[str] = []
    while True:
        batch = importing.import_batch(
            source,
            db,
            backend.database,
            name=name,
            backend=backend.alias,
            running=running,
            after=last,
        )
        if batch.last is None:
            return count, too_long
        backend.rows_due(batch.places)
        count, last = count + batch.moved, batch.last
        too_long += batch.too_long


def _too_long(ids: list[str]) -> list[str]:
    if not ids:
        return []
    return [
        f"Left behind: {_tasks(len(ids))} whose task path or queue name is too long: "
        f"{', '.join(ids[:5])}{', …' if ids[5:] else '.'}"
    ]


def _left(source: Source, db: str, name: str, known: int) -> list[str]:
    """Return a line for each kind of row that stays in the table and has not finished."""
    rows = source.rows(db).filter(status__in=(READY, RUNNING)).order_by()
    counts = rows.values_list(source.backend, "status").annotate(Count("pk"))
    lines = []
    for alias, status, count in sorted(counts):
        if alias != name:
            lines.append(
                f"Left behind: {_tasks(count)} with the status {status}, enqueued under the alias "
                f"{alias!r}. Import them with --from-backend {alias}."
            )
        elif status == RUNNING:
            lines.append(
                f"Left behind: {_tasks(count)} with the status RUNNING. Wait until they have "
                "finished. If no worker runs them any more, start them again with --running."
            )
        elif count > known:
            lines.append(
                f"Left behind: {_tasks(count - known)} that a worker was about to start, or that "
                "were enqueued meanwhile. Stop these processes and run the command again."
            )
    return lines


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
