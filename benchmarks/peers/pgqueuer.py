"""PgQueuer.

Owns its adapter. Never tunes the default.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from . import body
from .peer import URL, Setting
from .sql import SqlPeer

# Calls sent in one statement by the bulk measure.
BULK = 10_000


@asynccontextmanager
async def worker() -> AsyncIterator[Any]:
    """Yield what `pgq run` runs, as its documentation shows it."""
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver

    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))

    @pgq.entrypoint("noop")
    async def noop(job: Any) -> None:
        body.noop(int(job.payload or 0))

    yield pgq


class PgQueuer(SqlPeer):
    """Rows that are deleted when they end, and a log table that keeps when."""

    name = "pgqueuer"
    # Its command line does not start with typer 0.29.
    requirements = ("pgqueuer==1.6.0", "asyncpg==0.32.0", "psycopg[binary]==3.3.9", "typer==0.28.0")
    tables = ("pgqueuer", "pgqueuer_log")
    ends = "SELECT created AS at FROM pgqueuer_log WHERE status = 'successful'"
    waiting = "SELECT FROM pgqueuer"
    clock = "timestamps of its log table; the rows are deleted"
    default = Setting(("pgq", "run", "peers.pgqueuer:worker"), "as documented, async entrypoint")
    best = Setting(
        (*default.command, "--batch-size", "500", "--log-level", "WARNING"),
        "2 workers with batches of 500, async entrypoint",
        processes=2,
    )

    def prepare(self) -> None:
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        self.loop = asyncio.new_event_loop()
        self.queries = Queries(AsyncpgDriver(self.wait(asyncpg.connect(URL))))
        self.wait(self.queries.install())

    def wait(self, work: Any) -> Any:
        """Return what the coroutine returns."""
        return self.loop.run_until_complete(work)

    def write(self, count: int) -> None:
        self.enqueue_many(count)

    def enqueue(self, number: int = 0) -> None:
        self.wait(self.queries.enqueue("noop", str(number).encode()))

    def enqueue_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            rows = min(BULK, count - start)
            self.wait(self.queries.enqueue(["noop"] * rows, [None] * rows, [0] * rows))


PEER = PgQueuer()
