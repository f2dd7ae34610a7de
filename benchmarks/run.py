"""Measure dbtasks on one database, beside references of the same run.

    uv run benchmarks/run.py [drain] [enqueue] [latency] [--database URL] [--tasks N] [--runs N]
                             [--against PEER … [--backlog N,N] [--window S] [--redis URL] [--save]]

Prints a Markdown table: the median of the runs, their range, and the ratio to the reference.
Rates of a drain are taken from the database's timestamps, with signals on and rows kept.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure what the command line asks for."""
    from benchmarks.peers import runner as compare

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="drain|enqueue|latency")
    parser.add_argument("--database", default=f"sqlite:///{ROOT / 'benchmark.sqlite3'}")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    compare.add_arguments(parser)
    options = parser.parse_args()
    os.environ |= {
        "DBTASKS_DATABASE": options.database,
        "DBTASKS_DEBUG": "0",
        "DJANGO_SETTINGS_MODULE": "demo.settings",
    }
    measures = {"drain": drain, "enqueue": enqueue, "latency": latency}
    if unknown := set(options.what) - measures.keys():
        parser.error(f"unknown measure {min(unknown)!r}; choose from {', '.join(measures)}")
    prepare()
    print(f"{machine()}\n\n| what | median | range | of the reference |\n|---|---|---|---|")
    for name in options.what or measures:
        measures[name](options.tasks, options.runs)
    if options.against:
        compare.compare(options, options.what or list(measures), machine())


def prepare() -> None:
    """Load Django and create the table."""
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def machine() -> str:
    """Return one line about versions and the machine."""
    import django
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sqlite_version()" if connection.vendor == "sqlite" else "SELECT version()"
        )
        server = cursor.fetchone()[0].split(" on ")[0]
    return (
        f"{connection.display_name} {server}, Python {platform.python_version()}, "
        f"Django {django.__version__}, {os.cpu_count()} cores"
    )


def report(what: str, values: list[float], unit: str, reference: list[float] | None = None) -> None:
    """Print one row of the table."""
    middle = statistics.median(values)
    ratio = f"{middle / statistics.median(reference):.2f}" if reference else ""
    show = "{:,.0f}" if middle >= 100 else "{:.2f}"
    bounds = f"{show.format(min(values))}-{show.format(max(values))}"
    print(f"| {what} | {show.format(middle)} {unit} | {bounds} | {ratio} |", flush=True)


# Drain


def drain(count: int, runs: int) -> None:
    """A backlog of no-op tasks, worked off by `taskrunner --drain` as it comes."""
    raw = [count / raw_sql(count) for _ in range(runs)]
    report(f"raw SQL: claim + finish, batches of 500, {count:,} rows", raw, "rows/s")
    rates = []
    for _ in range(runs):
        fill(count)
        command = [sys.executable, "manage.py", "taskrunner", "--drain", "-v", "0"]
        subprocess.run(command, cwd=ROOT, check=True)
        rates.append(count / span())
    report(f"taskrunner --drain, no flags, {count:,} no-op tasks", rates, "tasks/s", raw)


def clear() -> None:
    """Delete all rows."""
    from dbtasks.models import ScheduledTask

    ScheduledTask.objects.all()._raw_delete("default")


def fill(count: int) -> None:
    """Write a backlog, and no other row."""
    from benchmarks.tasks import noop

    clear()
    noop.enqueue_many([((), {})] * count)


def span() -> float:
    """Return the seconds from the first start to the last end."""
    from django.db.models import Max, Min

    from dbtasks.models import ScheduledTask

    rows = ScheduledTask.objects.successful()
    found = rows.aggregate(first=Min("started_at"), last=Max("finished_at"))
    return (found["last"] - found["first"]).total_seconds()


def raw_sql(count: int) -> float:
    """Return the seconds of claims and finishes in SQL alone, for so many rows."""
    from django.db import connection

    from dbtasks import store
    from dbtasks.models import TABLE
    from dbtasks.store.rows import Change

    fill(count)
    sql = store._SQL[connection.vendor]
    began = time.perf_counter()
    verb = store._CLAIM.format(now=sql.now(connection), hold="")
    picks = store._picks("default", None)
    change = Change(verb, ("raw",), picks, "priority DESC, id", 500)
    while claims := sql.claim(connection, change):
        marks = ", ".join(["%s"] * len(claims))
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {TABLE} SET status = 'SUCCESSFUL', worker_id = NULL, "
                f"finished_at = {sql.now(connection)} WHERE id IN ({marks})",
                [claim[0] for claim in claims],
            )
    return time.perf_counter() - began


# Enqueue


def enqueue(count: int, runs: int) -> None:
    """One by one and in bulk, beside the ORM writing the same rows."""
    from benchmarks.tasks import noop
    from dbtasks.models import ScheduledTask

    few = max(200, count // 20)
    pairs: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
        "enqueue() one by one; create()": (
            few,
            lambda: [ScheduledTask.objects.create(**values()) for _ in range(few)],
            lambda: [noop.enqueue() for _ in range(few)],
        ),
        "enqueue_many(); bulk_create()": (
            count,
            lambda: ScheduledTask.objects.bulk_create(
                [ScheduledTask(**values()) for _ in range(count)], batch_size=500
            ),
            lambda: noop.enqueue_many([((), {})] * count),
        ),
    }
    for name, (rows, reference, ours) in pairs.items():
        rates: dict[str, list[float]] = {"orm": [], "ours": []}
        for _ in range(runs):
            for key, work in (("orm", reference), ("ours", ours)):
                clear()
                began = time.perf_counter()
                work()
                rates[key].append(rows / (time.perf_counter() - began))
        report(f"ORM: {name.split('; ')[1]}", rates["orm"], "rows/s")
        report(name.split("; ")[0], rates["ours"], "rows/s", rates["orm"])


def values() -> dict[str, Any]:
    """Return what the ORM writes for one call."""
    from django.utils import timezone

    from dbtasks.backend import uuid7

    return {
        "id": uuid7(),
        "task_path": "benchmarks.tasks.noop",
        "backend": "default",
        "queue_name": "default",
        "priority": 0,
        "args": [],
        "kwargs": {},
        "status": "READY",
        "hold": "",
        "enqueued_at": timezone.now(),
    }


# Latency


def latency(count: int, runs: int) -> None:
    """From enqueue() to the first line of the task, on an idle runner of another process."""
    from benchmarks.tasks import noop
    from dbtasks.models import ScheduledTask

    clear()
    command = [sys.executable, "manage.py", "taskrunner", "-v", "0"]
    runner = subprocess.Popen(command, cwd=ROOT)
    try:
        noop.enqueue().wait(30)
        waits = []
        for _ in range(20 * runs):
            result = noop.enqueue().wait(30)
            waits.append((result.started_at - result.enqueued_at) / timedelta(milliseconds=1))
            time.sleep(0.05)
    finally:
        runner.terminate()
        runner.wait()
    report("pick-up by an idle runner, p50", quantile(waits, 50), "ms")
    report("pick-up by an idle runner, p99", quantile(waits, 99), "ms")
    ScheduledTask.objects.all()._raw_delete("default")


def quantile(values: list[float], percent: int) -> list[float]:
    """Return that percentile, as a list of one."""
    return [sorted(values)[min(len(values) - 1, len(values) * percent // 100)]]


if __name__ == "__main__":
    main()
