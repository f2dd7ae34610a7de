"""The options of a runner, each declared once.

Owns the name, flag, environment variable, default, bounds and help of each. `taskrunner`, `serve`,
the runners inside web servers and the tables of the documentation take them from here. Never starts
a runner.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..base.queues import ALL, Served, served
from ..db.connections import pool_size
from . import values

# Connections from a pool besides one for each thread: of the loop as it starts and ends, and of the
# report. All others of dbtasks bypass a pool.
OWN_CONNECTIONS = 2


def default_workers() -> int:
    """Return the default number of threads: one less than there are CPUs, at least one.

    Without the GIL threads compute side by side: as many as there are CPUs.
    """
    count = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return max(1, count - 1) if has_gil else count


def default_coroutines(workers: int, db: str) -> int:
    """Return how many coroutines run at once by default: as many as the database should bear.

    Each of them may need a connection.
    """
    most, size = 4 * workers, pool_size(db)
    return most if size is None else max(1, min(most, size - workers - OWN_CONNECTIONS))


@dataclass(frozen=True, slots=True)
class Flag:
    """How an option is written on a command line and in the environment."""

    names: tuple[str, ...]
    # One sentence, and what happens without the flag, in words.
    meaning: str
    otherwise: str
    metavar: str | None = None
    # Parses the text of a flag or a variable; raises ArgumentTypeError if it is not valid.
    read: Callable[[str], Any] = str
    # The environment variable that runners inside web servers read; None if they have none.
    variable: str | None = None
    # Further arguments for argparse.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """The line of ``--help``."""
        return f"{self.meaning.removesuffix('.')} (default: {self.otherwise})."

    def read_variable(self, text: str) -> Any:
        """Return the value of the variable's text."""
        return self.read(text)


def _option(default: Any, *names: str, **flag: Any) -> Any:
    """Return the dataclass field of an option, with its Flag."""
    return field(default=default, metadata={"flag": Flag(names, **flag)})


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The arguments of a Runner. Raise ValueError if one of them is not valid.

    The defaults are those of ``Runner()``. Commands differ in `workers`: see `command_defaults`.
    """

    workers: int = _option(
        4,
        *("-w", "--workers", "-t", "--threads"),
        meaning="Number of threads that run tasks.",
        otherwise="CPUs minus one",
        metavar="N",
        read=values.whole("number of threads", 1, 1000),
        variable="DBTASKS_WORKERS",
    )
    worker_id: str | None = _option(
        None,
        *("-i", "--worker-id"),
        meaning="Beginning of the worker's name; random text is added.",
        otherwise="host and pid",
        metavar="ID",
        read=values.worker_name,
        variable="DBTASKS_WORKER_ID",
    )
    backend: str = _option(
        "default",
        "--backend",
        meaning="Alias in TASKS whose tasks are run.",
        otherwise="default",
        metavar="ALIAS",
        variable="DBTASKS_BACKEND",
    )
    loop_delay: float = _option(
        1.0,
        *("--delay", "--interval"),
        meaning="Longest idle wait between two polls of the queue, in seconds.",
        otherwise="1",
        metavar="S",
        read=values.seconds("delay", 0.01, 3600),
        variable="DBTASKS_DELAY",
    )
    init_periodic: bool = _option(
        True,
        "--no-periodic",
        meaning="Fire no schedules; only run enqueued tasks.",
        otherwise="schedules are fired",
        read=values.switch,
        variable="DBTASKS_PERIODIC",
        extra={"action": "store_false"},
    )
    queues: Sequence[str] | None = _option(
        None,
        *("-q", "--queue"),
        meaning="Run tasks of this queue only; may be repeated, or joined by commas; '*' is all.",
        otherwise="all queues",
        metavar="NAME",
        read=values.queues,
        variable="DBTASKS_QUEUES",
        extra={"action": "extend"},
    )
    grace: float = _option(
        30.0,
        "--grace",
        meaning="Seconds that running tasks may take after the first signal.",
        otherwise="30",
        metavar="S",
        read=values.seconds("grace period", 0, 86_400),
        variable="DBTASKS_GRACE",
    )
    drain: bool = _option(
        False,
        "--drain",
        meaning="Stop when no task is due or running.",
        otherwise="run until stopped",
        extra={"action": "store_true"},
    )
    exclude_queues: Sequence[str] | None = _option(
        None,
        *("-x", "--exclude-queue"),
        meaning="Run no tasks of this queue; may be repeated, or joined by commas.",
        otherwise="none",
        metavar="NAME",
        read=values.queues,
        variable="DBTASKS_EXCLUDE_QUEUES",
        extra={"action": "extend"},
    )
    max_tasks: int | None = _option(
        None,
        "--max-tasks",
        meaning="Stop after this many tasks.",
        otherwise="no limit",
        metavar="N",
        read=values.whole("number of tasks", 1, 10**12),
    )
    coroutines: int | None = _option(
        None,
        "--coroutines",
        meaning="Number of coroutines that run at once.",
        otherwise="4 for each thread",
        metavar="N",
        read=values.whole("number of coroutines", 1, 100_000),
        variable="DBTASKS_COROUTINES",
    )

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers!r}.")
        if self.coroutines is not None and self.coroutines < 1:
            raise ValueError(f"coroutines must be at least 1, not {self.coroutines!r}.")
        if self.loop_delay <= 0:
            raise ValueError(f"loop_delay must be above 0 seconds, not {self.loop_delay!r}.")
        for name in ("queues", "exclude_queues"):
            if isinstance(value := getattr(self, name), str):
                raise ValueError(f"{name} must be a list of names, not {value!r}.")
        if self.queues is not None:
            object.__setattr__(self, "queues", tuple(dict.fromkeys(self.queues)))
            if not self.queues:
                raise ValueError("queues is empty: name at least one, or None to serve all.")
        if self.exclude_queues is not None:
            object.__setattr__(self, "exclude_queues", tuple(dict.fromkeys(self.exclude_queues)))
        if ALL in (self.exclude_queues or ()) or self.served == ():
            raise ValueError("No queue is left to serve: all are excluded.")

    @property
    def served(self) -> Served:
        """The queues to serve: names, all but some, or None for all."""
        return served(self.queues, self.exclude_queues or ())


# For how long a command waits for its database before it starts a runner.
WAIT = Flag(
    ("--wait",),
    meaning="Seconds to wait at the start for a database that is not ready or not migrated.",
    otherwise="60 under a supervisor such as systemd, else 0",
    metavar="S",
    read=values.seconds("wait", 0, 86_400),
)

# The flag of each option, by the name of the Runner's argument.
FLAGS: dict[str, Flag] = {option.name: option.metadata["flag"] for option in fields(RunnerOptions)}


def command_defaults() -> dict[str, Any]:
    """Return what commands use for each option that has neither a flag nor a variable."""
    defaults = {option.name: option.default for option in fields(RunnerOptions)}
    return defaults | {"workers": default_workers()}
