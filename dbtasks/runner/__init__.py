"""The runner, which claims due rows and runs them in threads.

Owns the order of work from start to stop, and how much is claimed and when. Never writes SQL.

Read in this order: prefetch, quarantine, event_loops, room, abandoned, slots, ender, pool,
outcome_writer, tally, purger, rescuer, scheduler, fetcher, rounds, watch, guard, ending, run,
runner.
"""

from datetime import timedelta
from typing import Any

from django.tasks import TaskContext, task_backends

from .. import store
from ..backend import home_of_our_tasks
from ..base.task import task
from .runner import Runner

__all__ = ["Runner", "cleanup"]


def _our_task(function: Any) -> Any:
    """Make a task of the function, if there is a backend of ours that can run it."""
    home = home_of_our_tasks()
    return task(takes_context=True, **home)(function) if home else function


# Defined here because stored rows and settings name this path.
@_our_task
def cleanup(context: TaskContext, seconds: float) -> int:
    """Delete the rows of its backend that finished more than `seconds` ago; return how many."""
    alias = context.task_result.backend
    backend: Any = task_backends[alias]
    return sum(store.purge_older(backend.database, timedelta(seconds=seconds), backend=alias))
