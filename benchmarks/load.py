"""What a runner does with a backlog, and what it costs when there is none.

Owns the measures beside `drain`, `enqueue` and `latency`. Never prints: each yields rows of the
table, as `(what, values, unit, reference)`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import rows

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, list[float], str, list[float] | None]
# Seconds for a runner to come to rest, and to be watched at rest.
SETTLE, WATCH = 40.0, 30.0


@contextmanager
def runner(*flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `taskrunner` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "taskrunner", "-v", "0", *flags], cwd=ROOT
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def drained(*flags: str) -> float:
    """Let a runner work the backlog off; return the seconds from first start to last end."""
    command = [sys.executable, "manage.py", "taskrunner", "--drain", "-v", "0", *flags]
    subprocess.run(command, cwd=ROOT, check=True)
    return rows.span()


# Without work


def idle(count: int, runs: int) -> Iterator[Row]:
    """Statements, processor time and memory of a runner that has nothing to do."""
    from benchmarks.tasks import noop

    rows.clear()
    with bare() as process:
        bare_memory = [memory(process.pid)]
    yield "memory of a bare Django process with a connection", bare_memory, "MiB", None
    with runner() as process:
        noop.enqueue().wait(30)
        time.sleep(SETTLE)
        statements, cpu, began = queries(), processor(process.pid), time.monotonic()
        time.sleep(WATCH)
        passed = time.monotonic() - began
        share = (processor(process.pid) - cpu) / passed * 100
        if statements is not None:
            # The question itself is counted too.
            rate = (queries() - statements - 1) / passed
            yield "idle runner: messages to the server", [rate], "/s", None
        yield "idle runner: processor time", [share], "% of a core", None
        yield "idle runner: memory", [memory(process.pid)], "MiB", bare_memory


@contextmanager
def bare() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has loaded Django, and connected."""
    code = (
        "import django, sys; django.setup(); from django.db import connection; "
        "connection.ensure_connection(); print(flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.communicate()


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def processor(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queries() -> Any:
    """Return how many messages the server has answered; None if it does not count them."""
    from django.db import connection

    sql = {
        "mysql": "SELECT variable_value + 0 FROM information_schema.global_status "
        "WHERE variable_name = 'Questions'",
        "postgresql": "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
    }
    if connection.vendor not in sql:
        return None
    if connection.vendor == "postgresql":
        # Sessions report what they did a second or more ago.
        time.sleep(2)
    with connection.cursor() as cursor:
        cursor.execute(sql[connection.vendor])
        return cursor.fetchone()[0]


def endurance(count: int, runs: int) -> Iterator[Row]:
    """Memory after ten thousand tasks, after the first large backlog, and after a million."""
    few, large, many = 10_000, 100_000, max(200_000, 50 * count)
    with runner() as process:
        before: list[float] | None = None
        for total, backlogs in {
            few: [few],
            large: [large - few],
            many: [large] * (many // large - 1),
        }.items():
            for backlog in backlogs:
                rows.fill(backlog)
                until_empty()
            found = [memory(process.pid)]
            yield f"memory after {total:,} tasks", found, "MiB", before
            before = found


def until_empty() -> None:
    """Wait until no row is due or running."""
    from dbtasks.models import ScheduledTask

    while ScheduledTask.objects.due().exists() or ScheduledTask.objects.running().exists():
        time.sleep(0.1)


# With work


def depth(count: int, runs: int) -> Iterator[Row]:
    """The same backlog in an empty table and in a crowded one."""
    flags = ("--queue", "default")

    def rates(prepare: Any) -> list[float]:
        found = []
        for _ in range(runs):
            prepare()
            rows.add(count)
            found.append(count / drained(*flags))
        return found

    def shed() -> None:
        """Leave the crowd as it is, and none of the tasks that were run."""
        from dbtasks.models import ScheduledTask

        ScheduledTask.objects.filter(worker_ids__isnull=False)._raw_delete("default")

    empty = rates(rows.clear)
    yield f"drain of {count:,} rows, else an empty table", empty, "tasks/s", None
    yield "one claim of 10 rows", claims(), "ms (p50, p99)", None
    yield "one empty poll", polls(), "ms (p50, p99)", None
    rows.crowd()
    crowd = "1 M finished, 500 k future, 100 k of another queue"
    yield f"the same beside {crowd}, right after the load", rates(shed), "tasks/s", empty
    rows.analyze()
    yield "the same, statistics fresh", rates(shed), "tasks/s", empty
    yield "one claim of 10 rows", claims(), "ms (p50, p99)", None
    yield "one empty poll", polls(), "ms (p50, p99)", None
    with rows.old_transaction():
        yield "the same, an old transaction held open", rates(shed), "tasks/s", empty
    rows.clear()


def claims() -> list[float]:
    """Return the median and p99, in ms, of claims of ten rows."""
    from dbtasks import store
    from dbtasks.execution import outcomes
    from dbtasks.store import workers

    rows.add(2000)
    workers.register("default", "benchmark", "default", "", 0, 0)
    taken: list[float] = []
    while True:
        began = time.perf_counter()
        found = store.claim("default", "default", "benchmark", 10, ["default"], registered=True)
        taken.append((time.perf_counter() - began) * 1000)
        if not found:
            break
        ended = [outcomes.not_started("default", claim) for claim in found]
        store.settle("default", [outcome._replace(status="FAILED") for outcome in ended])
    workers.leave("default", "benchmark")
    return quantiles(taken)


def polls() -> list[float]:
    """Return the median and p99, in ms, of peeks at a queue with nothing due."""
    from dbtasks import store

    taken = []
    for _ in range(200):
        began = time.perf_counter()
        store.peek("default", "default", ["default"])
        taken.append((time.perf_counter() - began) * 1000)
    return quantiles(taken)


def quantiles(values: list[float]) -> list[float]:
    """Return the median and the 99th percentile."""
    values = sorted(values)
    return [values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)]]


def asynchronous(count: int, runs: int) -> Iterator[Row]:
    """A thousand coroutines that sleep for a second, by one runner."""
    from benchmarks.tasks import nap

    taken = []
    for _ in range(runs):
        rows.fill(1000, nap)
        taken.append(drained("--coroutines", "1000"))
    yield "1,000 × asyncio.sleep(1), one runner", taken, "s", None


def threads(count: int, runs: int) -> Iterator[Row]:
    """Tasks that wait 5 ms each, in more and more threads."""
    from benchmarks.tasks import block

    for number in (1, 4, 16):
        ideal = [number / 0.005]
        rates = []
        for _ in range(runs):
            rows.fill(number * 500, block)
            rates.append(number * 500 / drained("-w", str(number)))
        yield (
            f"5 ms blocking tasks, {number} threads (reference: threads / 5 ms)",
            rates,
            "/s",
            ideal,
        )


def processes(count: int, runs: int) -> Iterator[Row]:
    """Tasks that keep a processor busy for 2 ms each, in one process and in two."""
    from benchmarks.tasks import burn

    alone: list[float] | None = None
    for number in (1, 2):
        rates = []
        for _ in range(runs):
            rows.fill(4000, burn)
            rates.append(4000 / drained("--processes", str(number), "-w", "1"))
        yield f"2 ms of computing, --processes {number}", rates, "tasks/s", alone
        alone = alone or rates


MEASURES = {
    "idle": idle,
    "memory": endurance,
    "depth": depth,
    "async": asynchronous,
    "threads": threads,
    "processes": processes,
}
