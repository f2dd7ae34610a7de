"""procrastinate.

Owns its adapter. Never tunes the default.
"""

import os
from typing import Any

from . import body
from .peer import URL, Setting
from .sql import SqlPeer

if URL:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL))

    @app.task
    def noop(number: int = 0) -> None:
        """Do nothing; a plain function, as its documentation begins with."""
        body.noop(number)

    @app.task
    async def noop_async(number: int = 0) -> None:
        """Do nothing, on the worker's event loop."""
        body.noop(number)


# Which of the two is enqueued.
ASYNC = "BENCH_ASYNC" in os.environ


class Procrastinate(SqlPeer):
    """Jobs, with an event row for each change of their state, written by triggers."""

    name = "procrastinate"
    requirements = ("procrastinate==3.10.0", "psycopg[binary]==3.3.9")
    tables = ("procrastinate_jobs", "procrastinate_events")
    ends = "SELECT at FROM procrastinate_events WHERE type = 'succeeded'"
    waiting = "SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    clock = "timestamps of its events"
    default = Setting(("procrastinate", "--app=peers.procrastinate.app", "worker"), "as documented")
    best = Setting(
        (*default.command, "--concurrency", "5"),
        "2 workers with 5 jobs at once; a coroutine function",
        processes=2,
        variables={"BENCH_ASYNC": "1"},
    )

    @property
    def task(self) -> Any:
        """Return the task that is enqueued."""
        return noop_async if ASYNC else noop

    def prepare(self) -> None:
        app.open()
        app.schema_manager.apply_schema()

    def write(self, count: int) -> None:
        self.enqueue_many(count)

    def enqueue(self, number: int = 0) -> None:
        self.task.defer(number=number)

    def enqueue_many(self, count: int) -> None:
        self.task.batch_defer(*[{}] * count)


PEER = Procrastinate()
