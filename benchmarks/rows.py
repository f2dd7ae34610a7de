"""What stands in the table while something is measured.

Owns filling, emptying and reading it. Never measures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Numbers from 1 on, and the key made of one: older than any row of today.
SERIES = {
    "postgresql": "generate_series(1, {}) n",
    "mysql": "(SELECT seq AS n FROM seq_1_to_{}) series",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {}) "
    "SELECT n FROM s)",
}
KEY = {
    "postgresql": "('019{}0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid",
    "mysql": "CONCAT('019{}0000-0000-7000-8000-', LPAD(HEX(n), 12, '0'))",
    "sqlite": "printf('019{}0000000070008000%012x', n)",
}
LATER = {
    "postgresql": "now() + interval '1 day'",
    "mysql": "UTC_TIMESTAMP(6) + INTERVAL 1 DAY",
    "sqlite": "datetime('now', '+1 day')",
}
OLD = {
    "postgresql": ["BEGIN ISOLATION LEVEL REPEATABLE READ"],
    "mysql": [
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT",
    ],
    "sqlite": ["BEGIN"],
}
# So many rows of each kind, and what they differ in from a row that is due.
CROWD = {
    "finished": (
        1_000_000,
        {"status": "'SUCCESSFUL'", "started_at": "{now}", "finished_at": "{now}"},
    ),
    "future": (500_000, {"hold": "'scheduled'", "run_after": "{later}"}),
    "foreign": (100_000, {"queue_name": "'other'"}),
}


def clear() -> None:
    """Delete all rows, and what a database keeps of them."""
    from django.db import connection

    from dbtasks.models import TABLE, ScheduledTask

    if connection.vendor == "sqlite":
        ScheduledTask.objects.all()._raw_delete("default")
        return
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE TABLE {TABLE}")


def fill(count: int, task: Any = None) -> None:
    """Write a backlog, and no other row."""
    clear()
    add(count, task)


def add(count: int, task: Any = None) -> None:
    """Write a backlog beside what is there."""
    from benchmarks.tasks import noop

    (task or noop).enqueue_many([((), {})] * count)


def crowd() -> None:
    """Fill the table with rows that a runner of the default queue has nothing to do with."""
    from django.db import connection

    from dbtasks.models import TABLE

    clear()
    vendor = connection.vendor
    with connection.cursor() as cursor:
        for place, (count, changes) in enumerate(CROWD.values(), start=1):
            row = {
                "id": KEY[vendor].format(place),
                "task_path": "'benchmarks.tasks.noop'",
                "backend": "'default'",
                "queue_name": "'default'",
                "priority": "0",
                "args": "'[]'",
                "kwargs": "'{}'",
                "status": "'READY'",
                "hold": "''",
                "enqueued_at": "{now}",
                **changes,
            }
            values = ", ".join(row.values())
            values = values.replace("{now}", "CURRENT_TIMESTAMP").replace("{later}", LATER[vendor])
            cursor.execute(
                f"INSERT INTO {TABLE} ({', '.join(row)}) "
                f"SELECT {values} FROM {SERIES[vendor].format(count)}"
            )


def analyze() -> None:
    """Let the database count its rows."""
    from django.db import connection

    from dbtasks.models import TABLE

    word = "ANALYZE TABLE" if connection.vendor == "mysql" else "ANALYZE"
    with connection.cursor() as cursor:
        cursor.execute(f"{word} {TABLE}")


@contextmanager
def old_transaction() -> Iterator[None]:
    """Hold a transaction open that has read the table: nothing it could see is cleared away."""
    from django.db import connections

    from dbtasks.models import TABLE

    connection = connections["default"].copy("old")
    try:
        with connection.cursor() as cursor:
            for statement in OLD[connection.vendor]:
                cursor.execute(statement)
            cursor.execute(f"SELECT id FROM {TABLE} LIMIT 1")
            yield
            cursor.execute("ROLLBACK")
    finally:
        connection.close()


def span() -> float:
    """Return the seconds from the first start to the last end, by the database's timestamps."""
    from django.db.models import Max, Min

    from dbtasks.models import ScheduledTask

    rows = ScheduledTask.objects.successful().filter(worker_ids__isnull=False)
    found = rows.aggregate(first=Min("started_at"), last=Max("finished_at"))
    return float((found["last"] - found["first"]).total_seconds())
