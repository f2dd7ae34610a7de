"""Which task runs on which schedule, as projects write it.

Owns ``Periodic``, the decorator, and the sentences for invalid values in them. Never imports a task
or touches the database: a path is only text until a runner, or a check, looks for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from typing import Any

from django.tasks.base import Task

from ..exceptions import DurationError, ScheduleError
from .duration import Duration, short_repr
from .rules import Crontab, Every, Schedule, parse

# Characters of a key: it stands in every row that the schedule fires.
MAX_KEY = 200
# What becomes of ticks that came while no runner was there.
MISSED = ("latest", "skip", "all")


@dataclass(frozen=True, slots=True)
class Periodic:
    """A schedule of a task, for OPTIONS["periodic"]. ``manage.py check`` validates it.

    `spec` is a cron expression, a duration or a Schedule. `args` and `kwargs` are values, or
    functions that return them, called at each tick. `retain` is how long finished rows stay.
    `missed` decides about ticks that came while no runner was running: the latest one runs, or all
    (at most 100), or they are skipped. Without `overlap` a tick is skipped while the previous run
    has not finished. `key` distinguishes several schedules of one task; by default it is the path.
    """

    spec: Any
    args: Iterable[Any] | Callable[[], Iterable[Any]] = ()
    kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    retain: Any = None
    timezone: str | tzinfo | None = None
    missed: str = "latest"
    overlap: bool = True
    key: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """A schedule of a task whose values are valid; the task itself is not looked for."""

    key: str
    task_path: str
    schedule: Schedule
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    retain: timedelta | None = None
    missed: str = "latest"
    overlap: bool = True

    def call(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the next run. An exception of their functions is not caught."""
        args = self.args() if callable(self.args) else self.args
        kwargs = self.kwargs() if callable(self.kwargs) else self.kwargs
        return list(args), dict(kwargs)


# By path: the task, and its schedules, the one nearest to @task first.
_decorated: dict[str, tuple[Task, list[Periodic]]] = {}


def periodic(spec: Any, **options: Any) -> Callable[[Task], Task]:
    """Run the task on a schedule: write ``@periodic("@daily")`` above ``@task``.

    Takes what Periodic takes, and may be repeated. If OPTIONS["periodic"] has the same path, only
    that counts. Raise ScheduleError if a value is not valid, TypeError if it is not above
    ``@task``.
    """

    def decorate(task: Task) -> Task:
        if not isinstance(task, Task):
            raise TypeError(f"@periodic belongs above @task: {short_repr(task)} is not a task.")
        known, others = _decorated.get(task.module_path, (task, []))
        # A module that is imported again declares everything again.
        wanted = [*(others if known.func is task.func else []), Periodic(spec, **options)]
        _entries(task.module_path, wanted)
        _decorated[task.module_path] = (task, wanted)
        return task

    return decorate


def decorated(alias: str, except_for: Iterable[str] = ()) -> dict[str, ScheduleEntry]:
    """Return by key what decorators declare for the backend, without tasks of these paths."""
    paths = _decorated.keys() - set(except_for)
    found = [(path, _decorated[path]) for path in sorted(paths)]
    return {
        entry.key: entry
        for path, (task, wanted) in found
        if task.backend == alias
        for entry in _entries(path, wanted)
    }


def read(value: Any) -> dict[str, ScheduleEntry]:
    """Return by key what OPTIONS["periodic"] says; raise ScheduleError naming all mistakes."""
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
    # others contain what they say.
    key = one.key if one.key is not None else path if not position else f"{path} {schedule.text}"
    for sentence in _wrong(one, key):
        raise ScheduleError(sentence)
    return ScheduleEntry(
        key,
        path,
        parse(one.spec, one.timezone, key),
        one.args if callable(one.args) else tuple(one.args),
        one.kwargs if callable(one.kwargs) else dict(one.kwargs),
        None if one.retain is None else Duration(one.retain),
        one.missed,
        one.overlap,
    )


def _wrong(one: Periodic, key: Any) -> Iterator[str]:
    """Yield a sentence for each value that is not valid."""
    if not isinstance(key, str) or not key.isprintable() or key != key.strip() or not key:
        yield f"{short_repr(key)} is not a valid key. Use printable text without outer spaces."
    elif len(key) > MAX_KEY:
        yield f"The key {short_repr(key)} has more than {MAX_KEY} characters. Use `key` to name it."
    if not (callable(one.args) or isinstance(one.args, list | tuple)):
        found = short_repr(one.args)
        yield f"args must be a list, or a function that returns one, not {found}."
    if not (callable(one.kwargs) or isinstance(one.kwargs, Mapping)):
        found = short_repr(one.kwargs)
        yield f"kwargs must be a dict, or a function that returns one, not {found}."
    if one.missed not in MISSED:
        yield f"missed must be one of 'latest', 'skip' and 'all', not {short_repr(one.missed)}."
    if not isinstance(one.overlap, bool):
        yield f"overlap must be True or False, not {short_repr(one.overlap)}."
