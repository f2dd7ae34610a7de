"""The options of a runner, each declared once.

Owns the name, flag, environment variable, default, bounds and help of each. `taskrunner`, `serve`,
the runners inside web servers and the tables of the documentation take them from here. Never starts
a runner.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from . import values


def default_workers() -> int:
    """Return the default number of threads: one less than there are CPUs, at least one."""
    count = getattr(os, "process_cpu_count", os.cpu_count)()
    return max(1, (count or 1) - 1)


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
        """Return the value of the variable's text. Commas separate the items of a list."""
        return values.names(text) if self.extra.get("action") == "append" else self.read(text)


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
        meaning="Run tasks of this queue only; may be repeated.",
        otherwise="all queues",
        metavar="NAME",
        variable="DBTASKS_QUEUES",
        extra={"action": "append"},
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
    max_tasks: int | None = _option(
        None,
        "--max-tasks",
        meaning="Stop after this many tasks.",
        otherwise="no limit",
        metavar="N",
        read=values.whole("number of tasks", 1, 10**12),
    )

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


# The flag of each option, by the name of the Runner's argument.
FLAGS: dict[str, Flag] = {option.name: option.metadata["flag"] for option in fields(RunnerOptions)}


def command_defaults() -> dict[str, Any]:
    """Return what commands use for each option that has neither a flag nor a variable."""
    defaults = {option.name: option.default for option in fields(RunnerOptions)}
    return defaults | {"workers": default_workers()}
