"""What really ran: a table that the tasks write themselves, apart from the queue."""

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS, ConnectionHandler

from demo.databases import database

# Where the ledger is, as a URL, for the processes of a storm.
VARIABLE = "FAULTS_LEDGER"
TABLE = "dbtasks_ledger"


@dataclass(frozen=True)
class Entry:
    """The start or the end of one attempt."""

    task: str
    attempt: int
    pid: int
    what: str
    at: float


class Ledger:
    """Each thread writes on a connection of its own, one commit an entry."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connections = ConnectionHandler({DEFAULT_DB_ALIAS: database(url)})

    @property
    def _connection(self) -> Any:
        return self._connections[DEFAULT_DB_ALIAS]

    def make(self) -> None:
        """Make the table, empty."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
            cursor.execute(
                f"CREATE TABLE {TABLE} (task varchar(36) NOT NULL, attempt integer NOT NULL, "
                "pid integer NOT NULL, what varchar(5) NOT NULL, at double precision NOT NULL)"
            )

    def close(self) -> None:
        """Drop the table."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {TABLE}")
        self._connections.close_all()

    def hang_up(self) -> None:
        """Close the connection of this thread."""
        self._connections.close_all()

    def note(self, task: str, attempt: int, what: str) -> None:
        """Write one entry."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {TABLE} VALUES (%s, %s, %s, %s, %s)",
                [task, attempt, os.getpid(), what, time.time()],
            )

    def entries(self) -> dict[str, list[Entry]]:
        """Return all entries, by task."""
        found = defaultdict(list)
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT task, attempt, pid, what, at FROM {TABLE} ORDER BY at")
            for values in cursor.fetchall():
                found[values[0]].append(Entry(*values))
        return found


_ours: Ledger | None = None


def note(context: Any, what: str, *, is_last: bool = False) -> None:
    """Write an entry for the running attempt, in the ledger that the environment names.

    With `is_last` this thread, which may end now, keeps no connection to it.
    """
    global _ours
    if _ours is None:
        _ours = Ledger(os.environ[VARIABLE])
    _ours.note(context.task_result.id, context.attempt, what)
    if is_last:
        _ours.hang_up()
