"""The banner that a runner prints before it starts.

Owns its text. Never starts anything.
"""

import os
import sys

import django
from django.db import connections

from ..backend import DatabaseBackend
from ..base.queues import AllBut, Served
from ..distribution import version
from ..runner.runner import Runner
from ..stats import due_rows
from .terminal import humanize_seconds, plural, printable

# Due rows that are counted at most: the start does not wait for a count of millions.
MANY = 10_000


def banner(
    runner: Runner, backend: DatabaseBackend, processes: int = 0, stop: str | None = None
) -> str:
    """Return the banner of a runner, in which ``{worker_id}`` is still to be replaced.

    With `processes`, return the banner of the supervisor of that many processes, in which nothing
    is to be replaced. `stop` is the sentence about how to stop it, if that is not Ctrl-C.
    """
    connection = connections[backend.database]
    served = runner.options.served
    due = due_rows(backend.database, backend.alias, served)[: MANY + 1].count()
    threads, options = plural(runner.options.workers, "thread"), runner.options
    lines = [
        f"dbtasks {version()}, Django {django.__version__}, Python {sys.version.split()[0]}",
        f"Backend {backend.alias!r} in {connection.display_name} "
        f"{str(connection.settings_dict['NAME'])!r}, queues: {_queues(served, backend)}",
        f"{f'{processes} processes with ' if processes > 1 else ''}{threads}"
        f"{' each' if processes > 1 else ''}, polling at least every "
        f"{humanize_seconds(options.loop_delay)}, {humanize_seconds(options.grace)} of grace",
        f"{f'More than {MANY:,} tasks' if due > MANY else plural(due, 'task').capitalize()} due",
    ]
    text = "\n".join(printable(line) for line in lines)
    stop = stop or f"{'Drains the queue; stop' if runner.options.drain else 'Stop'} with Ctrl-C."
    if processes:
        return f"{text}\nSupervisor with pid {os.getpid()}. {stop}"
    text = text.replace("{", "{{").replace("}", "}}")
    return f"{text}\nWorker {{worker_id}}. {stop}"


def _queues(served: Served, backend: DatabaseBackend) -> str:
    if isinstance(served, AllBut):
        return f"all but {', '.join(sorted(served))}"
    return ", ".join(served or sorted(backend.queues)) or "all"
