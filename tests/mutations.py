"""Whether the tests notice a guard that is gone: each one is taken out of a copy of the package.

``uv run python -m tests.mutations [PART OF A NAME …]`` runs the store's tests once for each guard
and prints those that nobody missed. Exit code 1 if there are any. SQLite's guards and those that
all databases share are tried on SQLite; with TEST_DATABASE also those of that database's module.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DUE, CLAIMING, ROWS = "store/due.py", "store/claiming.py", "store/rows.py"
SETTLING = "store/settling.py"
OPERATIONS, PURGING, WORKERS = "store/operations.py", "store/purging.py", "store/workers.py"
RESCUE, OUTCOMES, INITIAL = "rescue.py", "execution/outcomes.py", "migrations/0001_queue.py"
POSTGRESQL, MYSQL, SQLITE = (
    f"store/dialects/{name}.py" for name in ("postgresql", "mysql", "sqlite")
)
# What tells on a guard, quickest first: the run ends at the first failure.
TESTS = [f"tests.store.{name}" for name in ("test_guards", "test_transitions", "test_workers")]


class Mutation(NamedTuple):
    """A text of one module that is a guard, and what stands there without it."""

    file: str
    guard: str
    without: str = ""

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{self.file}: {self.guard}"

    @property
    def vendor(self) -> str | None:
        """The one database that it matters to, None if it matters to all."""
        stem = Path(self.file).stem
        return stem if stem in ("mysql", "postgresql", "sqlite") else None

    def applied(self, text: str) -> str:
        """Return the module's text without the guard."""
        assert text.count(self.guard) == 1, self.name
        return text.replace(self.guard, self.without)


MUTATIONS = [
    # Claims
    Mutation(DUE, "DUE = f\"status = '{READY}' AND hold = ''\"", "DUE = \"hold = ''\""),
    Mutation(DUE, "DUE = f\"status = '{READY}' AND hold = ''\"", "DUE = f\"status = '{READY}'\""),
    Mutation(CLAIMING, "_STARTABLE = f\"status = '{READY}' AND hold IN", '_STARTABLE = f"hold IN'),
    Mutation(DUE, "{DUE} AND backend = %s AND attempt", "{DUE} AND %s <> '' AND attempt"),
    Mutation(DUE, "{DUE} AND backend = %s AND queue_name", "{DUE} AND %s <> '' AND queue_name"),
    Mutation(DUE, "AND queue_name = %s AND", "AND %s <> '' AND"),
    Mutation(CLAIMING, "{_STARTABLE} AND backend = %s AND id", "{_STARTABLE} AND %s <> '' AND id"),
    Mutation(CLAIMING, "fence = fence + 1, ", "fence = fence, "),
    Mutation(CLAIMING, '"attempt = attempt + 1, ', '"attempt = attempt, '),
    Mutation(CLAIMING, "WHERE worker_id = %s AND state = 'live')", "WHERE worker_id = %s)"),
    Mutation(CLAIMING, "if registered:\n        picks", "if False:\n        picks"),
    Mutation(CLAIMING, "if registered:\n        pick =", "if False:\n        pick ="),
    # Hold and time
    Mutation(DUE, "_HELD = f\"status = '{READY}' AND NOT", '_HELD = f"NOT'),
    Mutation(DUE, " AND hold = '{{}}' AND backend = %s", " AND backend = %s"),
    Mutation(DUE, "'{{}}' AND backend = %s", "'{{}}' AND %s <> ''"),
    Mutation(DUE, "hold_of('run_after', 'lost', now)", "hold_of('run_after', '0', now)"),
    Mutation(OPERATIONS, 'hold=_hold(db, "lost")', 'hold=_hold(db, "0")'),
    Mutation(DUE, 'else "IN"', 'else "NOT IN"'),
    Mutation(DUE, " AND queue_name {verb} (", " AND '' NOT IN ("),
    Mutation(DUE, " if name not in queues]", "]"),
    Mutation(DUE, " AND run_after <= {now}"),
    Mutation(ROWS, "WHEN {run_after} > {now} THEN 'scheduled' ", ""),
    Mutation(ROWS, "WHEN {lost} >= {QUARANTINE_AFTER} THEN", "WHEN {lost} < 0 THEN"),
    # Deletes
    Mutation(PURGING, "delete_after <= {sql.now(connection)} AND "),
    Mutation(PURGING, " AND {_FINISHED} AND", " AND"),
    Mutation(PURGING, "AND {_FINISHED} AND backend = %s", "AND {_FINISHED} AND %s <> ''"),
    Mutation(OPERATIONS, "_rows_by_id(db, ids).finished()", "_rows_by_id(db, ids)"),
    Mutation(OPERATIONS, "rows.filter(delete_after__lte=now(db))", "rows"),
    Mutation(OPERATIONS, "doomed = rows.filter", "doomed = ScheduledTask.objects.using(db).filter"),
    Mutation(PURGING, "using(db).finished().filter(status", "using(db).filter(status"),
    Mutation(PURGING, ".filter(status__in=list(statuses))"),
    Mutation(PURGING, "rows = rows.filter(finished_at__lt=now(db) - age)", ""),
    # Manual operations
    Mutation(OPERATIONS, ".filter(status=FAILED)"),
    Mutation(
        OPERATIONS, ".filter(status=READY, hold=Hold.SCHEDULED)", ".filter(hold=Hold.SCHEDULED)"
    ),
    Mutation(OPERATIONS, ".filter(status=READY, hold=Hold.SCHEDULED)", ".filter(status=READY)"),
    Mutation(OPERATIONS, "_rows_by_id(db, ids).filter(status=READY)\n", "_rows_by_id(db, ids)\n"),
    Mutation(OPERATIONS, ".filter(status=READY, fence=row.fence)", ".filter(status=READY)"),
    Mutation(OPERATIONS, ".filter(status=READY, fence=row.fence)", ".filter(fence=row.fence)"),
    Mutation(OPERATIONS, ".filter(id__in=list(ids))"),
    # Workers
    Mutation(WORKERS, '"WHERE worker_id = %s AND state', "\"WHERE %s <> '' AND state"),
    Mutation(WORKERS, " AND state = 'live'"),
    Mutation(WORKERS, ".filter(backend=backend).exclude(pk=worker_id)", ".exclude(pk=worker_id)"),
    Mutation(WORKERS, ".filter(backend=backend).exclude(pk=worker_id)", ".filter(backend=backend)"),
    Mutation(WORKERS, "state=LIVE, beat=beat)", "state=LIVE)"),
    Mutation(WORKERS, "pk=worker_id, state=LIVE, beat", "pk=worker_id, beat"),
    Mutation(WORKERS, "filter(pk=worker_id, state=LIVE, beat", "filter(state=LIVE, beat"),
    Mutation(WORKERS, "filter(state=LOST, backend=backend)", "filter(backend=backend)"),
    Mutation(WORKERS, "filter(state=LOST, backend=backend)", "filter(state=LOST)"),
    Mutation(WORKERS, ".running().filter(worker_id__in", ".filter(worker_id__in"),
    Mutation(WORKERS, ".filter(worker_id__in=lost)"),
    Mutation(WORKERS, ", beat_at__lt=now(db) - REMEMBERED", ""),
    Mutation(WORKERS, "if not running(db, worker_id):", "if True:"),
    Mutation(WORKERS, "._replace(fence=fences[pk_text(db, row.pk)])"),
    # The rescue
    Mutation(RESCUE, ' or row.lost + 1 >= MAX_LOST, ""', ', ""'),
    Mutation(RESCUE, "row.cancel_requested or row.lost", "row.lost"),
    Mutation(RESCUE, "fails or not backend.may_retry_lost(row)", "fails"),
    Mutation(RESCUE, "if row.cancel_requested:", "if False:"),
    Mutation(OUTCOMES, "lost=claim.lost + 1,", "lost=claim.lost,"),
    Mutation(OUTCOMES, "attempt=claim.attempt - 1", "attempt=claim.attempt"),
    Mutation(OPERATIONS, '"lost": 0, "releases": 0', '"lost": 0'),
    # Outcomes, on each database
    Mutation(ROWS, "CASE status WHEN 'RUNNING' THEN fence END = %s", "%s >= 0"),
    Mutation(ROWS, "CASE status WHEN 'RUNNING' THEN fence END", "fence"),
    Mutation(ROWS, "AND NOT (cancel_requested AND %s = 'READY')", "AND %s <> ''"),
    Mutation(SETTLING, "== (outcome.fence, RUNNING)", "!= (0, RUNNING)"),
    Mutation(SETTLING, "and not (asked and outcome.status == READY)", ""),
    Mutation(SETTLING, "if row[:6] == _counts(o)}", "}"),
    Mutation(POSTGRESQL, 'hold_of("k.run_after", "k.lost"', 'hold_of("k.run_after", "0"'),
    Mutation(MYSQL, 'hold_of("v.run_after", "v.lost"', 'hold_of("v.run_after", "0"'),
    Mutation(POSTGRESQL, "THEN fence END = v.fence", "THEN v.fence END = v.fence"),
    Mutation(POSTGRESQL, "CASE status WHEN 'RUNNING' THEN fence END", "fence"),
    Mutation(POSTGRESQL, " {limit} FOR NO KEY UPDATE SKIP LOCKED", " {limit}"),
    Mutation(POSTGRESQL, 'else "FOR NO KEY UPDATE SKIP LOCKED"', 'else "FOR NO KEY UPDATE"'),
    Mutation(MYSQL, "t.fence = v.fence AND t.status = 'RUNNING'", "t.status = 'RUNNING'"),
    Mutation(MYSQL, "t.fence = v.fence AND t.status = 'RUNNING'", "t.fence = v.fence"),
    Mutation(MYSQL, ":d} FOR UPDATE SKIP LOCKED", ":d} FOR UPDATE"),
    Mutation(MYSQL, '            "FOR UPDATE SKIP LOCKED"', '            "FOR UPDATE"'),
    # What the database itself forbids
    Mutation(INITIAL, '("backend", "schedule_key", "tick")', '("tick", "id")'),
]


def copy_without(mutation: Mutation, folder: Path) -> None:
    """Write the package, without the guard, into the folder."""
    shutil.copytree(ROOT / "dbtasks", folder / "dbtasks", ignore=shutil.ignore_patterns("*.pyc"))
    path = folder / "dbtasks" / mutation.file
    path.write_text(mutation.applied(path.read_text()))


def is_noticed(mutation: Mutation, tests: Iterable[str] = TESTS) -> bool:
    """Run the tests without the guard; return whether one of them failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_without(mutation, folder)
        database = os.environ.get("TEST_DATABASE", "")
        if mutation.vendor in (None, "sqlite"):
            database = f"sqlite:///{folder / 'guards.sqlite3'}"
        run = subprocess.run(
            [sys.executable, "-m", "django", "test", "--failfast", "--noinput", *tests],
            cwd=folder,
            env=os.environ
            | {
                "TEST_DATABASE": database,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
    # A copy that cannot even be imported proves nothing.
    if "Ran 0 tests" in run.stderr or "Ran " not in run.stderr or "ImportError" in run.stderr:
        raise RuntimeError(f"{mutation.name}: the tests did not run.\n{run.stderr[-2000:]}")
    return run.returncode != 0


def for_this_database() -> Iterator[Mutation]:
    """Yield what can be tried here."""
    database = os.environ.get("TEST_DATABASE", "")
    server = {"postgres": "postgresql", "mysql": "mysql"}.get(database.partition(":")[0])
    for mutation in MUTATIONS:
        if mutation.vendor in (None, "sqlite", server):
            yield mutation


def main(parts: list[str]) -> int:
    """Try what is asked for; return the exit code."""
    left = 0
    for mutation in for_this_database():
        if parts and not any(part in mutation.name for part in parts):
            continue
        noticed = is_noticed(mutation)
        left += not noticed
        print(f"{'noticed ' if noticed else 'SURVIVES'} {mutation.name} → {mutation.without!r}")
    print(f"{left} guards could go unnoticed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
