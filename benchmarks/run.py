"""Measure dbtasks on one database, beside references of the same run.

    uv run benchmarks/run.py [drain] [enqueue] [latency] [idle] [memory] [depth] [async] [threads]
                             [processes] [hints] [--database URL] [--tasks N] [--runs N]
                             [--against PEER … [--backlog N,N] [--window S] [--redis URL] [--save]]

Prints a Markdown table: the median of the runs, their range, and the ratio to the reference.
Rates of a drain are taken from the database's timestamps, with signals on and rows kept.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import hints, load, raw, rows  # noqa: E402
from benchmarks.peers import runner as compare  # noqa: E402


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="|".join(MEASURES | MORE))
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
    known = MEASURES | MORE
    if unknown := set(options.what) - known.keys():
        parser.error(f"unknown measure {min(unknown)!r}; choose from {', '.join(known)}")
    prepare()
    print(f"{machine()}\n\n| what | median | range | of the reference |\n|---|---|---|---|")
    for name in options.what or MEASURES:
        if name in MEASURES:
            MEASURES[name](options.tasks, options.runs)
        else:
            for row in MORE[name](options.tasks, options.runs):
                report(*row)
    if options.against:
        compare.compare(options, options.what or list(MEASURES), machine())


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
        rows.fill(count)
        rates.append(count / load.drained())
    report(f"taskrunner --drain, no flags, {count:,} no-op tasks", rates, "tasks/s", raw)


def raw_sql(count: int) -> float:
    """Return the seconds of claims and finishes in SQL alone, for so many rows."""
    from django.db import connection

    from dbtasks.models import TABLE
    from dbtasks.store.claiming import _CLAIM
    from dbtasks.store.due import due_rows
    from dbtasks.store.rows import Change
    from dbtasks.store.unit import dialect

    rows.fill(count)
    sql = dialect(connection)
    began = time.perf_counter()
    verb = _CLAIM.format(now=sql.now(connection), hold="")
    picks = due_rows("default", None)
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
    for name, (number, reference, ours) in pairs.items():
        rates: dict[str, list[float]] = {"orm": [], "ours": []}
        for _ in range(runs):
            for key, work in (("orm", reference), ("ours", ours)):
                rows.clear()
                began = time.perf_counter()
                work()
                rates[key].append(number / (time.perf_counter() - began))
        report(f"ORM: {name.split('; ')[1]}", rates["orm"], "rows/s")
        report(name.split("; ")[0], rates["ours"], "rows/s", rates["orm"])


def values() -> dict[str, Any]:
    """Return what the ORM writes for one call."""
    from django.utils import timezone

    from dbtasks.calls import uuid7

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
    """From enqueue() to the first line of the task: by an idle runner elsewhere, and in here."""
    from django.db import connection

    from dbtasks.runner import Runner

    samples = 50 * runs
    is_postgres = connection.vendor == "postgresql"
    reference = raw.pick_up(samples) if is_postgres else None
    here = raw.pick_up_here(samples) if is_postgres else None
    if reference:
        report_waits("raw INSERT, NOTIFY and claim between two idle processes", reference)
    if here:
        report_waits("raw INSERT and claim by two threads of a process", here)
    with load.runner():
        report_waits("pick-up by an idle runner", pick_ups(samples), reference)
    runner = Runner(1)
    thread = threading.Thread(target=runner.run)
    thread.start()
    runner.ready.wait()
    report_waits("pick-up in the same process", pick_ups(samples), here)
    runner.stop()
    thread.join()
    rows.clear()


def pick_ups(samples: int) -> list[float]:
    """Return the milliseconds from each enqueue() to the start, with a pause after each."""
    from benchmarks.tasks import noop
    from dbtasks.models import ScheduledTask

    rows.clear()
    noop.enqueue().wait(30)
    for _ in range(samples):
        time.sleep(random.uniform(0.05, 0.35))
        noop.enqueue()
    load.until_empty()
    found = ScheduledTask.objects.order_by("id").values_list("enqueued_at", "started_at")
    return [(started - enqueued) / timedelta(milliseconds=1) for enqueued, started in found[1:]]


def report_waits(what: str, waits: list[float], reference: list[float] | None = None) -> None:
    """Print a row each for the median and the 99th percentile."""
    for place, name in enumerate(("p50", "p99")):
        against = [load.quantiles(reference)[place]] if reference else None
        report(f"{what}, {name}", [load.quantiles(waits)[place]], "ms", against)


# What is measured when nothing is named.
MEASURES = {"drain": drain, "enqueue": enqueue, "latency": latency}
# What is measured only by its name.
MORE = load.MEASURES | hints.MEASURES

if __name__ == "__main__":
    main()
