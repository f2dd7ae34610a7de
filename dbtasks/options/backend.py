"""OPTIONS of a backend, parsed once into one frozen dataclass.

Owns every default, and the message about each option that is not valid. Never touches the database
or the app registry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS

from ..base import policy
from ..base.result import FINISHED
from ..exceptions import DurationError
from ..push import Push
from ..schedule.duration import Duration, duration_or_zero
from ..schedule.periodic import ScheduleEntry
from ..schedule.periodic import read as read_periodic
from ..waker import Waker


@dataclass(frozen=True, slots=True)
class Retention:
    """How long finished rows stay: for ever by default, not at all with 0.

    The path of a task wins over a status, a status over ``"*"``.
    """

    rules: Mapping[str, Duration | None] = field(default_factory=dict)

    def __call__(
        self, task_path: str, status: str, own: timedelta | None = None
    ) -> timedelta | None:
        """Return how long a row of that task with that final status stays; None is for ever.

        `own` is the policy of the task or of the call, which wins.
        """
        if own is not None:
            return None if own == policy.FOR_EVER else own
        for key in (task_path, status, "*"):
            if key in self.rules:
                return self.rules[key]
        return None

    @classmethod
    def parse(cls, value: Any) -> "Retention":
        """Return the retention of a duration, or of a mapping from paths, statuses or ``"*"``."""
        rules = value if isinstance(value, Mapping) else {"*": value}
        for key in rules:
            if not (key in FINISHED or key == "*" or (isinstance(key, str) and "." in key)):
                raise ValueError(
                    f"{key!r} must be the path of a task, 'SUCCESSFUL', 'FAILED' or '*'."
                )
        return cls({k: None if v is None else duration_or_zero(v) for k, v in rules.items()})


@dataclass(frozen=True, slots=True)
class Options:
    """The values of ``TASKS[alias]["OPTIONS"]``, with all defaults."""

    # Run tasks inside enqueue(), without a runner. Rows are still written.
    immediate: bool = False
    # Send the signals task_enqueued, task_started and task_finished.
    signals: bool = True
    # How long finished rows stay before the runner purges them.
    retain: Retention = field(default_factory=Retention)
    # Schedules by key, written as {path: "30 3 * * 1-5", or "15m", or Periodic(…)}.
    periodic: Mapping[str, ScheduleEntry] = field(default_factory=dict)
    # Seconds without a heartbeat after which a runner is declared lost. It sends four in that time.
    worker_timeout: float = 20.0
    # Attempts that may end in an exception, unless the task has its own number.
    max_attempts: int = 1
    # Seconds before the next attempt, a list of them, or a function; None grows exponentially.
    backoff: policy.Backoff | None = None
    # Seconds that one attempt may take; None is no limit.
    timeout: float | None = None
    # "retry" or "fail": what happens to a task whose worker is lost.
    on_lost: str = "retry"
    # Times that a task may be released by runners that stop while it runs; None is no limit.
    max_releases: int | None = None
    # Keep the connections of a thread between two tasks, for a minute.
    keep_connections: bool = True
    # Alias of the database that holds the queue, unless a router chooses another.
    database: str = DEFAULT_DB_ALIAS
    # Write the row when the caller's transaction commits, for a queue in a database of its own.
    # True is the transaction of the default database, an alias that of another database.
    enqueue_on_commit: bool | str = False
    # Modules that may be imported for a row, besides those of installed apps and the project.
    task_modules: tuple[str, ...] = ()
    # Bytes of JSON that args, kwargs, meta and the return value may each take.
    max_payload: int = 262_144
    # The service that hints about due rows are sent to, for hosts without a runner.
    push: Push | None = None
    # The service that wakes runners in other processes, instead of the database's own way.
    wakeup: Waker | None = None
    # Words in names whose values the admin masks in arguments and results.
    mask: tuple[str, ...] = (
        *("password", "passwd", "pwd", "pass", "passphrase", "passcode", "pin", "otp"),
        *("secret", "token", "credential", "auth", "authorization", "cookie", "key", "apikey"),
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} must be True or False.")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{value!r} is not a list of names.")
    return tuple(value)


def _alias(value: Any) -> str:
    from django.conf import settings

    if value not in settings.DATABASES:
        raise ValueError(f"{value!r} is not in DATABASES ({', '.join(settings.DATABASES)}).")
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a valid number of bytes. Use 1 or more.")
    return value


def _releases(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r} is not a valid number of releases. Use 1 or more, or None.")
    return value


def _seconds(value: Any) -> float:
    seconds = Duration(value).total_seconds()
    if seconds < 1:
        raise ValueError(f"{value!r} is too short. Use at least one second.")
    return seconds


def _push(value: Any) -> Push | None:
    if value is None or isinstance(value, Push):
        return value
    if isinstance(value, type):
        raise ValueError(f"{value.__name__} is a class. Use an object: {value.__name__}(…).")
    raise ValueError(
        f"a value of type {type(value).__name__} is not a push. Use an object such as "
        "dbtasks.contrib.cloudtasks.CloudTasks(…), or None."
    )


def _waker(value: Any) -> Waker | None:
    if value is None or isinstance(value, Waker):
        return value
    if isinstance(value, type):
        raise ValueError(f"{value.__name__} is a class. Use an object: {value.__name__}(…).")
    raise ValueError(
        f"a value of type {type(value).__name__} is not a waker. Use an object such as "
        "dbtasks.contrib.redis.Redis('redis://127.0.0.1:6379'), or None."
    )


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "immediate": _flag,
    "signals": _flag,
    "retain": Retention.parse,
    "periodic": read_periodic,
    "worker_timeout": _seconds,
    "max_attempts": policy.check_attempts,
    "backoff": policy.check_backoff,
    "timeout": lambda value: None if value is None else policy.check_timeout(value),
    "on_lost": policy.check_on_lost,
    "max_releases": _releases,
    "keep_connections": _flag,
    "database": _alias,
    "enqueue_on_commit": lambda value: _alias(value) if isinstance(value, str) else _flag(value),
    "task_modules": _names,
    "max_payload": _size,
    "push": _push,
    "wakeup": _waker,
    "mask": _names,
}


# By alias: OPTIONS and what they were parsed to. Django makes a backend for each thread and each
# context, so each task would parse them again: measured 5.6 ms with 20 cron expressions.
_parsed: dict[str, tuple[Any, Options]] = {}


def parsed(alias: str, raw: Any) -> Options:
    """Return what parse() returns, parsed once for each process.

    The same object is not parsed again, unless forget_parsed() was called.
    """
    known = _parsed.get(alias)
    if known is not None and known[0] is raw:
        return known[1]
    options = parse(alias, raw)
    _parsed[alias] = (raw, options)
    return options


def forget_parsed(*, setting: str, **_: Any) -> None:
    """Parse OPTIONS anew after a change of settings. A receiver of Django's setting_changed."""
    if setting in {"TASKS", "DATABASES"}:
        _parsed.clear()


setting_changed.connect(forget_parsed)


def problems(alias: str, raw: Any) -> list[str]:
    """Return a message for each invalid option of that backend, in the order of OPTIONS."""
    return _parse(alias, raw)[1]


def parse(alias: str, raw: Any) -> Options:
    """Return the options of that backend; raise ImproperlyConfigured naming each mistake."""
    values, wrong = _parse(alias, raw)
    if wrong:
        raise ImproperlyConfigured(" ".join(wrong))
    return Options(**values)


def _parse(alias: str, raw: Any) -> tuple[dict[str, Any], list[str]]:
    where = f"TASKS[{alias!r}]['OPTIONS']"
    if not isinstance(raw, Mapping):
        return {}, [f"{where} must be a dict, not {raw!r}."]
    values, wrong = {}, []
    for name, value in raw.items():
        if name not in _PARSERS:
            wrong.append(f"{where} has an unknown option {name!r}. {_suggestion(name)}")
            continue
        try:
            values[name] = _PARSERS[name](value)
        except (ValueError, TypeError, DurationError) as error:
            wrong.append(f"{where}[{name!r}]: {error}")
    return values, wrong


def _suggestion(name: Any) -> str:
    known = [f.name for f in fields(Options)]
    near = get_close_matches(str(name), known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
