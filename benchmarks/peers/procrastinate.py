"""procrastinate.

Owns its adapter. Never tunes the default.
"""

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
        (*default.command, "--concurrency", "20"), "20 jobs at once; a sync function, in threads"
    )

    def prepare(self) -> None:
        app.open()
        app.schema_manager.apply_schema()

    def write(self, count: int) -> None:
        self.enqueue_many(count)

    def enqueue(self, number: int = 0) -> None:
        noop.defer(number=number)

    def enqueue_many(self, count: int) -> None:
        noop.batch_defer(*[{}] * count)


PEER = Procrastinate()
