"""``manage.py dbtasks periodic``: list, run, pause and resume schedules."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandParser

from ... import firing
from ...backend import DatabaseBackend
from ...base import registry
from ...console import preflight
from ...console.terminal import printable
from ...exceptions import ScheduleError
from ...models import PeriodicTask
from ...options import values
from ...stats import last_run
from ...store import periodic

HELP = "List schedules with their next and last run, or run, pause or resume some of them."
COLUMNS = ("key", "task", "schedule", "timezone", "state", "next", "last", "status")


def add_arguments(parser: CommandParser) -> None:
    """Add the flags of the list and of the operations."""
    parser.add_argument(
        "--next",
        type=values.whole("number of runs", 1, 1000),
        default=1,
        metavar="N",
        help="List the next N runs of each schedule (default: 1).",
    )
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="Print JSON objects, one per line."
    )
    parser.add_argument(
        "--backend",
        metavar="ALIAS",
        help="Alias in TASKS of the schedules (default: every backend of dbtasks).",
    )
    for name, text in {
        "run": "Run the task of this schedule now.",
        "pause": "Stop firing this schedule until it is resumed. A deploy does not resume it.",
        "resume": "Fire this schedule again, from its next tick on.",
    }.items():
        parser.add_argument(f"--{name}", action="append", default=[], metavar="KEY", help=text)


class Row(NamedTuple):
    """A schedule in the list."""

    backend: DatabaseBackend
    schedule: PeriodicTask
    state: str


def handle(command: BaseCommand, options: dict[str, Any]) -> int:
    """List the schedules, or apply operations; return 1 if one could not be applied, else 0."""
    rows = [row for backend in _backends(options["backend"]) for row in _rows(backend)]
    chosen = [(name, key) for name in _OPERATIONS for key in options[name]]
    if chosen:
        return max(_apply(command, options, rows, name, key) for name, key in chosen)
    _list(command, rows, options)
    return 0


def _backends(alias: str | None) -> list[DatabaseBackend]:
    chosen = preflight.chosen_backends(alias)
    for backend in chosen:
        preflight.check_database(backend.database, writes=False)
    return chosen


def _rows(backend: DatabaseBackend) -> Iterator[Row]:
    """Yield the backend's schedules, sorted by key, with those that no runner has seen yet."""
    registry.discover(backend.config.task_modules)
    entries = firing.entries_of(backend)
    known = {row.key: row for row in periodic.of(backend.database, backend.alias)}
    for key in sorted(known.keys() | entries.keys()):
        row = known.get(key)
        if row is None:
            entry = entries[key]
            at = entry.schedule.next(periodic.now(backend.database)).astimezone(UTC)
            row = PeriodicTask(
                backend=backend.alias,
                key=key,
                task_path=entry.task_path,
                spec=entry.schedule.text,
                timezone=str(entry.schedule.zone),
                next_tick=at,
            )
            yield Row(backend, row, "new")
        elif row.paused:
            yield Row(backend, row, "paused")
        else:
            own = row.origin == periodic.ADMIN or key in entries
            yield Row(backend, row, "active" if own else "not in settings")


# Listing


def _list(command: BaseCommand, rows: Iterable[Row], options: dict[str, Any]) -> None:
    table = [_shown(row, options["next"]) for row in rows]
    if options["as_json"]:
        for shown in table:
            command.stdout.write(json.dumps(shown))
        return
    lines = [[_text(shown[name]) for name in COLUMNS] for shown in table]
    if not command.stdout.isatty():
        for line in [list(COLUMNS), *lines]:
            command.stdout.write("\t".join(line))
    elif lines:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
        for line in [[name.upper() for name in COLUMNS], *lines]:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            command.stdout.write("  ".join(cells).rstrip())
    else:
        command.stdout.write("There are no schedules.")


def _shown(row: Row, count: int) -> dict[str, Any]:
    schedule = row.schedule
    last = last_run(row.backend.database, schedule)
    return {
        "backend": row.backend.alias,
        "key": schedule.key,
        "task": schedule.task_path,
        "schedule": schedule.spec,
        "timezone": schedule.timezone,
        "state": row.state,
        "next": [] if row.state == "paused" else _next(schedule, count),
        "last": _iso(schedule.last_tick),
        "status": last and last.status,
        "skipped": _iso(schedule.skipped_tick),
        "missed": schedule.missed,
        "overlap": schedule.overlap,
    }


def _next(row: PeriodicTask, count: int) -> list[str | None]:
    ticks = [row.next_tick]
    try:
        while len(ticks) < count:
            ticks.append(row.schedule.next(ticks[-1]))
    except ScheduleError:  # somebody changed the row by hand
        pass
    return [_iso(tick) for tick in ticks]


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _text(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value or "")
    return printable(text) or "-"


# Operations


def _apply(
    command: BaseCommand, options: dict[str, Any], rows: Iterable[Row], name: str, key: str
) -> int:
    found = [row for row in rows if row.schedule.key == key]
    if not found:
        command.stderr.write(f"There is no schedule {key!r}. Without --{name} all are listed.")
        return 1
    if len(found) > 1:
        command.stderr.write(f"Several backends have a schedule {key!r}. Choose one by --backend.")
        return 1
    [row] = found
    if row.state == "new":
        command.stderr.write(f"No runner has started with {key!r} yet.")
        return 1
    try:
        done, text = _OPERATIONS[name](row)
    except ScheduleError as error:
        done, text = False, f"could not be done: {error}"
    if done and options["verbosity"]:
        command.stdout.write(f"{key} {text}")
    elif not done:
        command.stderr.write(f"{key} {text}")
    return 0 if done else 1


def _run(row: Row) -> tuple[bool, str]:
    if firing.run_now(row.backend, row.schedule):
        return True, "runs now."
    return False, "was not run: the run before has not finished, or the schedule has just ticked."


def _pause(row: Row) -> tuple[bool, str]:
    periodic.pause(row.backend.database, [row.schedule.pk])
    return True, "is paused."


def _resume(row: Row) -> tuple[bool, str]:
    periodic.resume(row.backend.database, [row.schedule.pk])
    return True, "is active."


_OPERATIONS = {"run": _run, "pause": _pause, "resume": _resume}
