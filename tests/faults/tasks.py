"""Tasks of the storms: each notes its start and its end, and returns which attempt it was."""

import ctypes
import os
import time
from typing import Any

from django.tasks import task

import dbtasks
from dbtasks.execution import unknown

from .ledger import note

# Which release of the code a process has; without it all that there ever was.
RELEASE = os.environ.get("FAULTS_RELEASE")
if RELEASE:
    # A row that meets the wrong release is tried by the other one sooner than usual.
    unknown.FIRST_DELAY, unknown.LONGEST_DELAY = 0.2, 1.0


@task(takes_context=True)
def work(context: Any, seconds: float = 0.01) -> int:
    """Take that long."""
    note(context, "start")
    time.sleep(seconds)
    note(context, "end")
    return int(context.attempt)


if RELEASE != "old":

    @task(takes_context=True)
    def introduced(context: Any, seconds: float) -> int:
        """Take that long. The old release does not know this."""
        return int(work.func(context, seconds))


if RELEASE != "new":

    @task(takes_context=True)
    def retired(context: Any, seconds: float) -> int:
        """Take that long. The new release does not know this."""
        return int(work.func(context, seconds))


@task(takes_context=True)
def leave(context: Any) -> None:
    """End the process."""
    note(context, "start")
    os._exit(1)


@task(takes_context=True)
def crash(context: Any) -> None:
    """End the process by a segmentation fault."""
    note(context, "start")
    ctypes.string_at(0)


@task(takes_context=True)
def starve(context: Any, seconds: float) -> int:
    """Keep all other threads of the process from running, the first time."""
    note(context, "start")
    if context.attempt == 1:
        hold_interpreter(seconds)
    note(context, "end")
    return int(context.attempt)


def hold_interpreter(seconds: float) -> None:
    """Stay in C, without ever letting go of the interpreter, for about that long or longer."""
    numbers = 10**6
    began = time.perf_counter()
    sum(range(numbers))
    sum(range(int(numbers * seconds / (time.perf_counter() - began))))


@dbtasks.task(max_attempts=2, backoff=0)
def sometimes(number: int) -> int:
    """Fail the third of the time."""
    if number % 3 == 0:
        raise ValueError(number)
    return number
