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
STORE, WORKERS = "store/__init__.py", "store/workers.py"
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
    Mutation(STORE, "_DUE = f\"status = '{READY}' AND hold = ''\"", "_DUE = \"hold = ''\""),
    Mutation(
        STORE, "_DUE = f\"status = '{READY}' AND hold = ''\"", "_DUE = f\"status = '{READY}'\""
    ),
    Mutation(STORE, "_STARTABLE = f\"status = '{READY}' AND hold IN", '_STARTABLE = f"hold IN'),
    Mutation(STORE, "{_DUE} AND backend = %s AND attempt", "{_DUE} AND %s <> '' AND attempt"),
    Mutation(STORE, "{_DUE} AND backend = %s AND queue_name", "{_DUE} AND %s <> '' AND queue_name"),
    Mutation(STORE, "AND queue_name = %s AND", "AND %s <> '' AND"),
    Mutation(STORE, "{_STARTABLE} AND backend = %s AND id", "{_STARTABLE} AND %s <> '' AND id"),
    Mutation(STORE, "fence = fence + 1, ", "fence = fence, "),
    Mutation(STORE, '"attempt = attempt + 1, ', '"attempt = attempt, '),
    Mutation(STORE, "WHERE worker_id = %s AND state = 'live')", "WHERE worker_id = %s)"),
    Mutation(STORE, "if registered:\n        picks", "if False:\n        picks"),
    Mutation(STORE, "if registered:\n        pick =", "if False:\n        pick ="),
    # Hold and time
    Mutation(STORE, "_HELD = f\"status = '{READY}' AND NOT", '_HELD = f"NOT'),
    Mutation(STORE, " AND hold = '{{}}' AND backend = %s", " AND backend = %s"),
    Mutation(STORE, "'{{}}' AND backend = %s", "'{{}}' AND %s <> ''"),
    Mutation(STORE, 'f"CASE WHEN lost >= {SUSPECT} THEN', 'f"CASE WHEN lost < 0 THEN'),
    Mutation(STORE, "When(lost__gte=SUSPECT", "When(lost__lt=0"),
    Mutation(STORE, " AND queue_name IN (", " AND queue_name NOT IN ("),
    Mutation(STORE, " AND run_after <= {sql.now(connection)}"),
    # Deletes
    Mutation(STORE, "delete_after <= {sql.now(connection)} AND "),
    Mutation(STORE, " AND {_FINISHED} AND", " AND"),
    Mutation(STORE, "AND {_FINISHED} AND backend = %s", "AND {_FINISHED} AND %s <> ''"),
    Mutation(STORE, "_by_hand(db, ids).finished()", "_by_hand(db, ids)"),
    Mutation(STORE, "rows.filter(delete_after__lte=now(db))", "rows"),
    Mutation(STORE, "doomed = rows.filter", "doomed = ScheduledTask.objects.using(db).filter"),
    Mutation(STORE, "using(db).finished().filter(status", "using(db).filter(status"),
    Mutation(STORE, ".filter(status__in=list(statuses))"),
    Mutation(STORE, "rows = rows.filter(finished_at__lt=now(db) - age)", ""),
    # By hand
    Mutation(STORE, ".filter(status=FAILED)"),
    Mutation(STORE, ".filter(status=READY, hold=Hold.SCHEDULED)", ".filter(hold=Hold.SCHEDULED)"),
    Mutation(STORE, ".filter(status=READY, hold=Hold.SCHEDULED)", ".filter(status=READY)"),
    Mutation(STORE, "_by_hand(db, ids).filter(status=READY)\n", "_by_hand(db, ids)\n"),
    Mutation(STORE, ".filter(status=READY, fence=row.fence)", ".filter(status=READY)"),
    Mutation(STORE, ".filter(status=READY, fence=row.fence)", ".filter(fence=row.fence)"),
    Mutation(STORE, ".filter(id__in=list(ids))"),
    Mutation(STORE, "        unique_slot=None,\n", ""),
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
    Mutation(WORKERS, "row.lost + 1 >= MAX_LOST or "),
    Mutation(WORKERS, "lost=row.lost + 1,", "lost=row.lost,"),
    Mutation(WORKERS, "beat_at__lt=at - REMEMBERED", ""),
    Mutation(WORKERS, "if not running(db, worker_id):", "if True:"),
    Mutation(
        WORKERS,
        "fence=fence,\n        status=FAILED if ends",
        "fence=row.fence,\n        status=FAILED if ends",
    ),
    Mutation(WORKERS, "attempt=row.attempt - 1", "attempt=row.attempt"),
    # Outcomes, on each database
    Mutation("store/rows.py", " AND %s >= {SUSPECT}", " AND %s < 0"),
    Mutation("store/postgresql.py", "k.lost >= {SUSPECT}", "k.lost < 0"),
    Mutation("store/mysql.py", "v.lost >= {SUSPECT}", "v.lost < 0"),
    Mutation("store/rows.py", "CASE status WHEN 'RUNNING' THEN fence END = %s", "%s >= 0"),
    Mutation("store/rows.py", "CASE status WHEN 'RUNNING' THEN fence END", "fence"),
    Mutation("store/rows.py", "AND NOT (cancel_requested AND %s = 'READY')", "AND %s <> ''"),
    Mutation("store/sqlite.py", "(id, fence, status) IN", "(id, fence, status) NOT IN"),
    Mutation("store/postgresql.py", "THEN fence END = v.fence", "THEN v.fence END = v.fence"),
    Mutation("store/postgresql.py", "CASE status WHEN 'RUNNING' THEN fence END", "fence"),
    Mutation("store/postgresql.py", " FOR NO KEY UPDATE SKIP LOCKED"),
    Mutation(
        "store/mysql.py", "t.fence = v.fence AND t.status = 'RUNNING'", "t.status = 'RUNNING'"
    ),
    Mutation("store/mysql.py", "t.fence = v.fence AND t.status = 'RUNNING'", "t.fence = v.fence"),
    Mutation("store/mysql.py", "t.fence = v.fence AND t.status = v", "t.status = v"),
    Mutation("store/mysql.py", " FOR UPDATE SKIP LOCKED"),
    # What the database itself forbids
    Mutation("migrations/0001_initial.py", '("unique_slot",)', '("unique_slot", "id")'),
    Mutation("migrations/0001_initial.py", '("backend", "schedule_key", "tick")', '("tick", "id")'),
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
