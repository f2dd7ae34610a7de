"""The runner, which claims due rows and runs them in threads.

Owns the order of work from start to stop, and how much is claimed and when. Never writes SQL.

Read in this order: prefetch, quarantine, deadlines, event_loops, pool, outcome_writer, purger,
scheduler, fetcher, rounds, run, runner.
"""

from datetime import timedelta
from typing import Any

from django.tasks import TaskContext, task_backends

from .. import store
from ..backend import home_of_our_tasks
from ..base.task import task
from .runner import Runner

__all__ = ["Runner", "cleanup"]


# Defined here because stored rows and settings name this path.
@task(takes_context=True, **home_of_our_tasks())  # type: ignore[untyped-decorator]
def cleanup(context: TaskContext, seconds: float) -> int:
    """Delete the rows of its backend that finished more than `seconds` ago; return how many."""
    alias = context.task_result.backend
    backend: Any = task_backends[alias]
    return sum(store.purge_older(backend.database, timedelta(seconds=seconds), backend=alias))
