"""The tasks that are measured."""

import asyncio
import time

from django.tasks import task


@task
def noop() -> None:
    """Do nothing."""


@task
async def nap() -> None:
    """Wait for a second without a thread."""
    await asyncio.sleep(1)


@task
def block() -> None:
    """Wait for 5 ms with a thread, as for an answer from the network."""
    time.sleep(0.005)


@task
def burn() -> None:
    """Keep a processor busy for 2 ms of its own time."""
    until = time.thread_time() + 0.002
    while time.thread_time() < until:
        pass
