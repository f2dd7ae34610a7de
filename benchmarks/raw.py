"""The pick-up that PostgreSQL allows at best: INSERT, NOTIFY and a claim, no framework.

Owns both sides of it, in two processes and in two threads; run as a program it is the process that
waits. Never touches our table.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

TABLE = "dbtasks_raw_pick_up"
CLAIM = (
    f"UPDATE {TABLE} SET taken = true WHERE id = (SELECT id FROM {TABLE} "
    "WHERE NOT taken LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id"
)


def pick_up(samples: int) -> list[float]:
    """Return the milliseconds from before each INSERT to after the claim, in another process."""
    import psycopg

    url = os.environ["DBTASKS_DATABASE"]
    with psycopg.connect(url, autocommit=True) as connection:
        _create(connection)
        command = [sys.executable, __file__, url]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None
        waiting.stdout.readline()
        waits = list(_send(connection, waiting, samples))
        waiting.terminate()
        waiting.wait()
        connection.execute(f"DROP TABLE {TABLE}")
    return waits


def pick_up_here(samples: int) -> list[float]:
    """Return the milliseconds from before each INSERT to after the claim, by a thread in here."""
    import psycopg

    url = os.environ["DBTASKS_DATABASE"]
    asked, claimed = threading.Event(), threading.Event()
    waits = []
    with (
        psycopg.connect(url, autocommit=True) as connection,
        psycopg.connect(url, autocommit=True) as other,
    ):

        def work() -> None:
            for _ in range(samples):
                asked.wait()
                asked.clear()
                other.execute(CLAIM).fetchone()
                claimed.set()

        _create(connection)
        thread = threading.Thread(target=work)
        thread.start()
        for n in range(samples):
            time.sleep(random.uniform(0.05, 0.35))
            sent = time.perf_counter()
            connection.execute(f"INSERT INTO {TABLE} VALUES (%s, %s, false)", [n, sent])
            asked.set()
            claimed.wait()
            claimed.clear()
            waits.append((time.perf_counter() - sent) * 1000)
        thread.join()
        connection.execute(f"DROP TABLE {TABLE}")
    return waits


def _create(connection) -> None:  # type: ignore[no-untyped-def]
    connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
    connection.execute(f"CREATE TABLE {TABLE} (id int PRIMARY KEY, sent float8, taken bool)")


def _send(connection, waiting, samples: int) -> Iterator[float]:  # type: ignore[no-untyped-def]
    for n in range(samples):
        time.sleep(random.uniform(0.05, 0.35))
        sent = time.time()
        connection.execute(f"INSERT INTO {TABLE} VALUES (%s, %s, false)", [n, sent])
        connection.execute(f"SELECT pg_notify('{TABLE}', '')")
        yield (float(waiting.stdout.readline()) - sent) * 1000


def wait(url: str) -> None:
    """Claim a row at each NOTIFY, and print when it was claimed."""
    import psycopg

    with (
        psycopg.connect(url, autocommit=True) as listening,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        listening.execute(f"LISTEN {TABLE}")
        print("ready", flush=True)
        for _ in listening.notifies():
            connection.execute(CLAIM).fetchone()
            print(time.time(), flush=True)


if __name__ == "__main__":
    wait(sys.argv[1])
