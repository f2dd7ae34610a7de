"""Which task runs on which schedule, as projects write it.

Owns ``Periodic``, the decorator, and the messages about their invalid values. Never imports a task
or touches the database: a path is only text until a runner or a check looks for its task.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from typing import Any

from django.tasks.base import Task

from ..exceptions import DurationError, ScheduleError
from .duration import duration_or_zero, short_repr
from .rules import Crontab, Every, Schedule, parse

# Characters of a key, which is stored in every row that the schedule fires.
MAX_KEY = 200
# What to do with ticks that came while no runner was running.
MISSED = ("latest", "skip", "all")


@dataclass(frozen=True, slots=True)
class Periodic:
    """A schedule of a task, for OPTIONS["periodic"]. ``manage.py check`` validates it.

    - `spec`: a cron expression, a duration, or a Schedule.
    - `args`, `kwargs`: values, or functions that return them and are called at each tick; None is
      none.
    - `retain`: how long finished rows stay, as a duration; None leaves it to the task. It counts
      for the runs of the schedule only, not for other calls of the task.
    - `timezone`: the time zone whose clocks count, if `spec` has none; Django's TIME_ZONE if None.
    - `missed`: what to do with ticks that came while no runner was running. ``"latest"`` runs the
      last one, ``"all"`` the last 100 at most, ``"skip"`` none that is more than 10 seconds late.
    - `overlap`: if False, a tick is skipped while the previous run has not finished, and
      ``"all"`` runs one missed tick only.
    - `key`: tells several schedules of one task apart. The default is the path of the task; from
      the second schedule of a task on, it is the path and the expression.
    - `queue_name`, `priority`: where the runs are enqueued; None leaves it to the task.
    """

    spec: Any
    args: Iterable[Any] | Callable[[], Iterable[Any]] | None = ()
    kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = field(default_factory=dict)
    retain: Any = None
    timezone: str | tzinfo | None = None
    missed: str = "latest"
    overlap: bool = True
    key: str | None = None
    queue_name: str | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """A Periodic with valid values and the path of its task, which need not exist."""

    key: str
    task_path: str
    schedule: Schedule
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    retain: timedelta | None = None
    missed: str = "latest"
    overlap: bool = True
    queue_name: str | None = None
    priority: int | None = None

    def call(self) -> tuple[list[Any], dict[str, Any]]:
        """Return args and kwargs for a run. Exceptions of functions that make them are raised."""
        args = self.args() if callable(self.args) else self.args
        kwargs = self.kwargs() if callable(self.kwargs) else self.kwargs
        return list(args or ()), dict(kwargs or {})


# The task and its schedules by its path; the schedule nearest to @task comes first.
_decorated: dict[str, tuple[Task, list[Periodic]]] = {}


def periodic(spec: Any, **options: Any) -> Callable[[Task], Task]:
    """Run the task on a schedule: write ``@periodic("@daily")`` above ``@task``.

    Takes the arguments of Periodic, and may be repeated. Runners see it in the ``tasks`` modules of
    installed apps and of the project's package, and in OPTIONS["task_modules"], which they import
    when they start. If OPTIONS["periodic"] names the same task, the decorators
    are ignored. Raise ScheduleError if a value is not valid, TypeError if it is not above
    ``@task``.
    """

    def decorate(task: Task) -> Task:
        if not isinstance(task, Task):
            raise TypeError(f"@periodic belongs above @task: {short_repr(task)} is not a task.")
        known, others = _decorated.get(task.module_path, (task, []))
        # A module that is imported again declares its schedules again.
        wanted = [*(others if known.func is task.func else []), Periodic(spec, **options)]
        _entries(task.module_path, wanted)
        _decorated[task.module_path] = (task, wanted)
        return task

    return decorate


def decorated(alias: str, except_for: Iterable[str] = ()) -> dict[str, ScheduleEntry]:
    """Return the backend's decorated schedules by key, except those of tasks of these paths."""
    paths = _decorated.keys() - set(except_for)
    found = [(path, _decorated[path]) for path in sorted(paths)]
    return {
        entry.key: entry
        for path, (task, wanted) in found
        if task.backend == alias
        for entry in _entries(path, wanted)
    }


def declared(alias: str) -> list[Task]:
    """Return the tasks of the backend that have decorated schedules."""
    return [task for task, _ in list(_decorated.values()) if task.backend == alias]


def read(value: Any) -> dict[str, ScheduleEntry]:
    """Return the schedules of OPTIONS["periodic"] by key; raise ScheduleError for all mistakes."""
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{short_repr(value)} is not a mapping from task paths to schedules.")
    entries: dict[str, ScheduleEntry] = {}
    folded: set[str] = set()
    wrong: list[str] = []
    for path, wanted in value.items():
        try:
            found = _entries(path, wanted if isinstance(wanted, list | tuple) else [wanted])
        except ScheduleError as error:
            wrong.append(str(error))
            continue
        for entry in found:
            # Some databases treat "Key" and "key" as equal.
            if entry.key.casefold() in folded:
                wrong.append(
                    f"{entry.key!r} is the key of two schedules. Give one of them another key."
                )
            folded.add(entry.key.casefold())
            entries[entry.key] = entry
    if wrong:
        raise ScheduleError(" ".join(wrong))
    return entries


def _entries(path: Any, wanted: Iterable[Any]) -> list[ScheduleEntry]:
    """Return the entries for the task of that path, in order.

    Raise ScheduleError if one is not valid.
    """
    if not (isinstance(path, str) and "." in path):
        raise ScheduleError(
            f"{short_repr(path)} is not the path of a task, such as 'mysite.tasks.tidy'."
        )
    entries: list[ScheduleEntry] = []
    for item in wanted:
        try:
            entries.append(_entry(path, item, len(entries)))
        except (ScheduleError, DurationError) as error:
            raise ScheduleError(f"{path}: {error}") from None
    keys = [entry.key.casefold() for entry in entries]
    for entry in entries:
        if keys.count(entry.key.casefold()) > 1:
            raise ScheduleError(
                f"{path}: {entry.key!r} is the key of two schedules. Give one another `key`."
            )
    return entries


def _entry(path: str, item: Any, position: int) -> ScheduleEntry:
    one = item if isinstance(item, Periodic) else Periodic(item)
    schedule = parse(one.spec, one.timezone)
    if not isinstance(schedule, Crontab | Every):
        raise ScheduleError(f"{schedule!r} must be a Crontab or an Every.")
    # The key of a task's first schedule is its path, so that its expression may change. The keys of
    # the others contain their expression.
    key = one.key if one.key is not None else path if not position else f"{path} {schedule.text}"
    for sentence in _wrong(one, key):
        raise ScheduleError(sentence)
    return ScheduleEntry(
        key,
        path,
        parse(one.spec, one.timezone, key),
        one.args if callable(one.args) else tuple(one.args or ()),
        one.kwargs if callable(one.kwargs) else dict(one.kwargs or {}),
        None if one.retain is None else duration_or_zero(one.retain),
        one.missed,
        one.overlap,
        one.queue_name,
        one.priority,
    )


def _wrong(one: Periodic, key: Any) -> Iterator[str]:
    """Yield a message for each value that is not valid."""
    if not isinstance(key, str) or not key.isprintable() or key != key.strip() or not key:
        yield f"{short_repr(key)} is not a valid key. Use printable text without outer spaces."
    elif len(key) > MAX_KEY:
        yield f"The key {short_repr(key)} has more than {MAX_KEY} characters. Use `key` to name it."
    if not (callable(one.args) or isinstance(one.args, list | tuple | None)):
        found = short_repr(one.args)
        yield f"args must be a list, or a function that returns one, not {found}."
    if not (callable(one.kwargs) or isinstance(one.kwargs, Mapping | None)):
        found = short_repr(one.kwargs)
        yield f"kwargs must be a dict, or a function that returns one, not {found}."
    if one.missed not in MISSED:
        yield f"missed must be one of 'latest', 'skip' and 'all', not {short_repr(one.missed)}."
    if not isinstance(one.overlap, bool):
        yield f"overlap must be True or False, not {short_repr(one.overlap)}."
    queue: Any = one.queue_name
    if not isinstance(queue, str | None) or queue == "":
        yield f"queue_name must be the name of a queue, not {short_repr(queue)}."
    priority: Any = one.priority
    if isinstance(priority, bool) or not isinstance(priority, int | None):
        yield f"priority must be a whole number, not {short_repr(priority)}."
