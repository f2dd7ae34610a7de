"""Which task runs on which schedule, as projects write it.

Owns ``Periodic``, the decorator, and the sentences for what is wrong in them. Never imports a task
or touches the database: a path is a text until a runner, or a check, looks for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from typing import Any

from django.tasks.base import Task

from .exceptions import DurationError, ScheduleError
from .schedule import Crontab, Duration, Every, Schedule, parse, short_repr

# Characters of a key: it stands in every row that the schedule fires.
MAX_KEY = 200
# What becomes of ticks that came while no runner was there.
MISSED = ("latest", "skip", "all")


@dataclass(frozen=True, slots=True)
class Periodic:
    """A schedule of a task, for OPTIONS["periodic"]; what is wrong in it is said by ``check``.

    `spec` is a cron line, a duration or a Schedule. `args` and `kwargs` are values, or functions
    that return them, called at each tick. `retain` is how long finished rows stay. `missed` says
    what becomes of ticks that came while no runner was there: the latest is run, or all (at most
    100), or they are skipped. Without `overlap` a tick is skipped while the run before has not
    finished. `key` tells several schedules of one task apart, and is the path unless given.
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
class Plan:
    """A schedule of a task that has been checked, but for the task."""

    key: str
    task_path: str
    schedule: Schedule
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    retain: timedelta | None = None
    missed: str = "latest"
    overlap: bool = True

    def call(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the next run; what their functions raise is not caught."""
        args = self.args() if callable(self.args) else self.args
        kwargs = self.kwargs() if callable(self.kwargs) else self.kwargs
        return list(args), dict(kwargs)


# By path: the task, and its schedules, the one nearest to @task first.
_decorated: dict[str, tuple[Task, list[Periodic]]] = {}


def periodic(spec: Any, **options: Any) -> Callable[[Task], Task]:
    """Run the task on a schedule, on its own backend: ``@periodic("@daily")`` above ``@task``.

    Takes what Periodic takes, and may be repeated. OPTIONS["periodic"] wins for a path that is in
    both. Raise ScheduleError if a value is not valid, TypeError if it is not above ``@task``.
    """

    def decorate(task: Task) -> Task:
        if not isinstance(task, Task):
            raise TypeError(f"@periodic belongs above @task: {short_repr(task)} is no task.")
        known, others = _decorated.get(task.module_path, (task, []))
        # A module that is imported again says it all again.
        wanted = [*(others if known.func is task.func else []), Periodic(spec, **options)]
        _plans(task.module_path, wanted)
        _decorated[task.module_path] = (task, wanted)
        return task

    return decorate


def decorated(alias: str, except_for: Iterable[str] = ()) -> dict[str, Plan]:
    """Return by key what decorators say for the backend, but of tasks with these paths."""
    paths = _decorated.keys() - set(except_for)
    found = [(path, _decorated[path]) for path in sorted(paths)]
    return {
        plan.key: plan
        for path, (task, wanted) in found
        if task.backend == alias
        for plan in _plans(path, wanted)
    }


def read(value: Any) -> dict[str, Plan]:
    """Return by key what OPTIONS["periodic"] says; raise ScheduleError naming all that is wrong."""
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{short_repr(value)} is no mapping from task paths to schedules.")
    plans: dict[str, Plan] = {}
    folded: set[str] = set()
    wrong: list[str] = []
    for path, wanted in value.items():
        try:
            found = _plans(path, wanted if isinstance(wanted, list | tuple) else [wanted])
        except ScheduleError as error:
            wrong.append(str(error))
            continue
        for plan in found:
            # To some databases "Key" and "key" are the same.
            if plan.key.casefold() in folded:
                wrong.append(f"{plan.key!r} is the key of two schedules. Give one another key.")
            folded.add(plan.key.casefold())
            plans[plan.key] = plan
    if wrong:
        raise ScheduleError(" ".join(wrong))
    return plans


def _plans(path: Any, wanted: Iterable[Any]) -> list[Plan]:
    """Return the plans for the task of that path, in order; raise ScheduleError if one is wrong."""
    if not (isinstance(path, str) and "." in path):
        raise ScheduleError(
            f"{short_repr(path)} is no path of a task, such as 'mysite.tasks.tidy'."
        )
    plans: list[Plan] = []
    for item in wanted:
        try:
            plans.append(_plan(path, item, len(plans)))
        except (ScheduleError, DurationError) as error:
            raise ScheduleError(f"{path}: {error}") from None
    keys = [plan.key.casefold() for plan in plans]
    for plan in plans:
        if keys.count(plan.key.casefold()) > 1:
            raise ScheduleError(
                f"{path}: {plan.key!r} is the key of two schedules. Use `key` to name one."
            )
    return plans


def _plan(path: str, item: Any, position: int) -> Plan:
    one = item if isinstance(item, Periodic) else Periodic(item)
    schedule = parse(one.spec, one.timezone)
    if not isinstance(schedule, Crontab | Every):
        raise ScheduleError(f"{schedule!r} is neither a Crontab nor an Every.")
    # The first schedule of a task goes by its path, so that its line may change; of several the
    # others go by what they say.
    key = one.key if one.key is not None else path if not position else f"{path} {schedule.text}"
    for sentence in _wrong(one, key):
        raise ScheduleError(sentence)
    return Plan(
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
    """Yield a sentence for each value that is not what it should be."""
    if not isinstance(key, str) or not key.isprintable() or key != key.strip() or not key:
        yield f"{short_repr(key)} is no key. Use printable text, no space at the ends."
    elif len(key) > MAX_KEY:
        yield f"The key {short_repr(key)} has more than {MAX_KEY} characters. Use `key` to name it."
    if not (callable(one.args) or isinstance(one.args, list | tuple)):
        yield f"args must be a list, or a function that returns one: {short_repr(one.args)}."
    if not (callable(one.kwargs) or isinstance(one.kwargs, Mapping)):
        yield f"kwargs must be a dict, or a function that returns one: {short_repr(one.kwargs)}."
    if one.missed not in MISSED:
        yield f"missed must be one of 'latest', 'skip' and 'all', not {short_repr(one.missed)}."
    if not isinstance(one.overlap, bool):
        yield f"overlap must be True or False, not {short_repr(one.overlap)}."
