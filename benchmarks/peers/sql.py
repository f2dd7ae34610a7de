"""What the peers on PostgreSQL share: backlogs by copied rows, and rates by their timestamps.

Owns the SQL of the measures. Never writes a peer's first row: its own API does.
"""

import time
from functools import cached_property
from typing import Any

from .peer import URL, Drained, Peer


class SqlPeer(Peer):
    """A peer whose tasks are rows."""

    tables: tuple[str, ...] = ()
    """Emptied before each backlog."""
    ends = ""
    """SQL for the time of each successful end, as `at`."""
    waiting = ""
    """SQL for a row for each call that has not ended."""

    @cached_property
    def connection(self) -> Any:
        """Return a connection of the measuring side, apart from the peer's own."""
        import psycopg

        return psycopg.connect(URL, autocommit=True)

    def query(self, sql: str, *values: Any) -> Any:
        """Return the first row."""
        return self.connection.execute(sql, values or None).fetchone()

    def run(self, sql: str, *values: Any) -> None:
        """Execute a statement."""
        self.connection.execute(sql, values or None)

    def clear(self) -> None:
        self.run(f"TRUNCATE {', '.join(self.tables)} CASCADE")

    def fill(self, count: int) -> None:
        self.write(count)
        self.run("VACUUM ANALYZE")

    def write(self, count: int) -> None:
        """Enqueue one call and copy its row, unless the peer does better."""
        self.enqueue()
        self.copy(count - 1)

    def copy(self, count: int) -> None:
        """Copy the only row so many times."""
        raise NotImplementedError

    def multiply(self, table: str, count: int, fresh: dict[str, str]) -> None:
        """Insert `count` copies of the only row; `fresh` has SQL for columns that differ.

        An empty text leaves the column to its default. `n` is the number of the copy.
        """
        columns = {name: fresh.get(name, f"the_row.{name}") for name in self.columns(table)}
        columns = {name: sql for name, sql in columns.items() if sql}
        self.run(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "
            f"FROM {table} AS the_row, generate_series(1, {count}) AS n"
        )

    def columns(self, table: str) -> list[str]:
        """Return the table's columns."""
        rows = self.connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
        )
        return [name for (name,) in rows]

    def watch(self, window: float, patience: float) -> Drained:
        self.await_first(patience)
        self.await_last(window)
        tasks, seconds = self.query(
            # Statistics know of no finished row: the planner would look for the first end anew for
            # each of the others.
            f"WITH ends AS MATERIALIZED ({self.ends}), "
            "first AS MATERIALIZED (SELECT min(at) AS at FROM ends) "
            "SELECT count(*) FILTER (WHERE ends.at > first.at), "
            "extract(epoch FROM max(ends.at) - min(first.at))::float "
            "FROM ends, first WHERE ends.at <= first.at + make_interval(secs => %s)",
            window,
        )
        return Drained(tasks, seconds)

    def await_first(self, patience: float) -> None:
        """Wait for the first end. The looks are rare, so that they take no time from the worker."""
        deadline = time.monotonic() + patience
        while not self.exists(self.ends):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no task was finished in {patience:.0f} s")
            time.sleep(0.5)

    def await_last(self, window: float) -> None:
        """Wait until the window is over, or no call is left."""
        deadline = time.monotonic() + window
        while (rest := deadline - time.monotonic()) > 0 and self.exists(self.waiting):
            time.sleep(min(1.0, rest))

    def exists(self, sql: str) -> bool:
        """Return whether the query has a row."""
        return bool(self.query(f"SELECT EXISTS ({sql})")[0])

    def finished(self) -> int:
        return int(self.query(f"SELECT count(*) FROM ({self.ends}) AS ends")[0])
