"""``manage.py purgetasks``: delete finished rows by age."""

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import CommandError, CommandParser

from ... import store
from ...backend import DatabaseBackend
from ...base.result import FINISHED
from ...console import preflight, terminal
from ...console.command import TasksCommand
from ...options import values
from ...schedule.duration import Duration


class Command(TasksCommand):
    """Delete finished rows older than an age, in batches."""

    help = "Deletes finished tasks older than a given age, whatever their retention."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=values.duration,
            required=True,
            metavar="AGE",
            help="Age of the tasks to delete: seconds, or a duration such as '7d'; 0 is all.",
        )
        _add_filters(parser)
        parser.add_argument(
            "--batch-size",
            type=values.whole("batch size", 1, 10_000),
            default=500,
            metavar="N",
            help="Rows deleted in one transaction (default: 500).",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Print how many would be deleted; delete none."
        )

    def handle(self, **options: Any) -> None:
        age = options["older_than"]
        chosen = {"statuses": options["statuses"] or FINISHED}
        chosen |= {name: options[name] for name in ("queues", "tasks")}
        backends = _backends(options["backend"])
        for backend in backends:
            preflight.check_database(backend.database)
        if options["dry_run"]:
            count = sum(
                store.older(b.database, age, backend=b.alias, **chosen).count() for b in backends
            )
            self._say(options, f"Would delete {_finished(count, age)}")
            return
        self._purge(backends, age, chosen, options)

    def _purge(
        self, backends: list[DatabaseBackend], age: Duration, chosen: Any, options: Any
    ) -> None:
        screen = terminal.Terminal(self.stderr)
        deleted, shows = 0, options["verbosity"] > 0 and screen.isatty()
        try:
            for backend in backends:
                for count in store.purge_older(
                    backend.database,
                    age,
                    backend=backend.alias,
                    batch=options["batch_size"],
                    **chosen,
                ):
                    deleted += count
                    if shows:
                        screen.bar(f"deleted {deleted:,}")
        except KeyboardInterrupt:
            # The current batch is rolled back; those before it are committed.
            screen.bar("")
            self._say(options, f"Interrupted. Deleted {_finished(deleted, age)}")
            raise SystemExit(130) from None
        screen.bar("")
        self._say(options, f"Deleted {_finished(deleted, age)}")

    def _say(self, options: dict[str, Any], text: str) -> None:
        if options["verbosity"]:
            self.stdout.write(text)


def _add_filters(parser: CommandParser) -> None:
    parser.add_argument(
        "--status",
        type=_statuses,
        action="extend",
        dest="statuses",
        metavar="STATUS",
        help="SUCCESSFUL or FAILED; may be repeated, or joined by commas (default: both).",
    )
    parser.add_argument(
        *("-q", "--queue"),
        type=values.names,
        action="extend",
        dest="queues",
        metavar="NAME",
        help="Only tasks of this queue; may be repeated, or joined by commas.",
    )
    parser.add_argument(
        "--task",
        type=values.names,
        action="extend",
        dest="tasks",
        metavar="PATH",
        help="Only calls of the task with this path; may be repeated, or joined by commas.",
    )
    parser.add_argument(
        "--backend",
        metavar="ALIAS",
        help="Alias in TASKS whose tasks are deleted (default: every backend of dbtasks).",
    )


def _statuses(text: str) -> list[str]:
    """Return the final statuses that the text names, joined by commas."""
    names = [name.strip().upper() for name in text.split(",")]
    for name in names:
        if name not in FINISHED:
            raise ArgumentTypeError(f"{name!r} is not a final status. Use {' or '.join(FINISHED)}.")
    return names


def _backends(alias: str | None) -> list[DatabaseBackend]:
    """Return the backend of that alias, or all of dbtasks; raise CommandError if there is none."""
    chosen = preflight.chosen_backends(alias)
    if not chosen:
        raise CommandError("No backend in TASKS is a dbtasks DatabaseBackend.")
    return chosen


def _finished(count: int, age: Duration) -> str:
    if not age:
        return f"{terminal.plural(count, 'finished task')}."
    return f"{terminal.plural(count, 'task')} that ended more than {age} ago."
