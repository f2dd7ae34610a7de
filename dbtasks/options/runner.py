"""The options of a runner, each declared once.

Owns the name, flag, environment variable, default, bounds and help of each. `taskrunner`, `serve`
and the runners inside web servers read them from here. Never starts a runner.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import values


def default_workers() -> int:
    """Return the default number of threads: one less than there are CPUs, at least one."""
    count = getattr(os, "process_cpu_count", os.cpu_count)()
    return max(1, (count or 1) - 1)


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The arguments of a Runner. Raise ValueError if one of them is not valid."""

    workers: int = 4
    worker_id: str | None = None
    backend: str = "default"
    loop_delay: float = 1.0
    init_periodic: bool = True
    queues: Sequence[str] | None = None
    grace: float = 30.0
    drain: bool = False
    max_tasks: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers!r}.")
        if self.loop_delay <= 0:
            raise ValueError(f"loop_delay must be above 0 seconds, not {self.loop_delay!r}.")
        if isinstance(self.queues, str):
            raise ValueError(
                f"queues must be a list of names, not {self.queues!r}; None serves all."
            )
        if self.queues is not None:
            object.__setattr__(self, "queues", tuple(dict.fromkeys(self.queues)))
            if not self.queues:
                raise ValueError("queues is empty: name at least one, or None to serve all.")


@dataclass(frozen=True, slots=True)
class RunnerOption:
    """One option: how it is written on a command line and in the environment."""

    # The name of the argument of Runner.
    name: str
    flags: tuple[str, ...]
    help: str
    metavar: str | None = None
    # Parses the text of a flag or a variable; raises ArgumentTypeError if it is not valid.
    read: Callable[[str], Any] = str
    # What commands use if neither flag nor variable is given.
    default: Any = None
    # The environment variable that runners inside web servers read; None if they have none.
    variable: str | None = None
    # Further arguments for argparse.
    extra: dict[str, Any] = field(default_factory=dict)

    def read_variable(self, text: str) -> Any:
        """Return the value of the variable's text. Commas separate the items of a list."""
        return values.names(text) if self.extra.get("action") == "append" else self.read(text)


RUNNER_OPTIONS = (
    RunnerOption(
        "workers",
        ("-w", "--workers", "-t", "--threads"),
        f"Threads that run tasks (default: CPUs minus one, here {default_workers()}).",
        "N",
        values.whole("number of threads", 1, 1000),
        default_workers(),
        "DBTASKS_WORKERS",
    ),
    RunnerOption(
        "worker_id",
        ("-i", "--worker-id"),
        "Beginning of the worker's name; random text is added (default: host and pid).",
        "ID",
        values.worker_name,
        variable="DBTASKS_WORKER_ID",
    ),
    RunnerOption(
        "backend",
        ("--backend",),
        "Alias in TASKS whose tasks are run (default: default).",
        "ALIAS",
        default="default",
        variable="DBTASKS_BACKEND",
    ),
    RunnerOption(
        "queues",
        ("-q", "--queue"),
        "Run tasks of this queue only; may be repeated (default: all queues).",
        "NAME",
        variable="DBTASKS_QUEUES",
        extra={"action": "append"},
    ),
    RunnerOption(
        "loop_delay",
        ("--delay", "--interval"),
        "Longest idle wait between two polls of the queue, in seconds (default: 1).",
        "S",
        values.seconds("delay", 0.01, 3600),
        1.0,
        "DBTASKS_DELAY",
    ),
    RunnerOption(
        "init_periodic",
        ("--no-periodic",),
        "Fire no schedules; only run enqueued tasks.",
        read=values.switch,
        default=True,
        variable="DBTASKS_PERIODIC",
        extra={"action": "store_false"},
    ),
    RunnerOption(
        "grace",
        ("--grace",),
        "Seconds that running tasks may take after the first signal (default: 30).",
        "S",
        values.seconds("grace period", 0, 86_400),
        30.0,
        "DBTASKS_GRACE",
    ),
    RunnerOption(
        "drain",
        ("--drain",),
        "Stop when no task is due or running.",
        default=False,
        extra={"action": "store_true"},
    ),
    RunnerOption(
        "max_tasks",
        ("--max-tasks",),
        "Stop after this many tasks (default: no limit).",
        "N",
        values.whole("number of tasks", 1, 10**12),
    ),
)
