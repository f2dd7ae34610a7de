"""A run of the demo: the files of one folder, as rows."""

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched
from pathlib import Path
from typing import Any

from django.db.models import Count
from django.tasks import TaskResultStatus

from dbtasks.base.result import FINISHED
from dbtasks.models import ScheduledTask, ScheduledTaskQuerySet

from .tasks import as_text, measure

SKIPPED = {".git", ".venv"}
# Rows written in one transaction: what a Ctrl-C waits for.
CHUNK = 1000


def walk(folder: Path, skip: set[Path], failed: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the files below the folder, relative to it, broken links among them.

    `skip` are files to leave out; `failed` is told of folders that cannot be listed.
    """
    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if path not in skip and _is_wanted(path):
                yield str(path.relative_to(folder))


def _is_wanted(path: Path) -> bool:
    """Tell whether it is a file or may be one: pipes, sockets and devices are left out."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


@dataclass
class Run:
    """The rows of one run. Nothing else is kept: the rows say what was enqueued and how it went."""

    folder: str
    id: str
    # How many files were found when the run began.
    files: int
    # Files that have a row.
    names: set[str] = field(default_factory=set)

    @classmethod
    def last(cls, folder: Path) -> "Run | None":
        """Return the folder's last run, if its rows are still there."""
        text = as_text(str(folder))
        rows = ScheduledTask.objects.filter(task_path=measure.module_path)
        for kwargs in rows.order_by("-id").values_list("kwargs", flat=True).iterator():
            if kwargs["folder"] == text:
                run = cls(text, kwargs["run"], kwargs["files"])
                run.names = {args[0] for args in run.rows().values_list("args", flat=True)}
                return run
        return None

    @classmethod
    def new(cls, folder: Path, files: int) -> "Run":
        """Return a run of the folder without rows."""
        return cls(as_text(str(folder)), uuid.uuid4().hex, files)

    def rows(self) -> ScheduledTaskQuerySet:
        """Return the run's rows."""
        # No index serves this: the demo has thousands of rows, and a table of its own would only
        # be one more thing that can disagree with them.
        return ScheduledTask.objects.filter(task_path=measure.module_path, kwargs__contains=self.id)

    def missing(self, names: list[str]) -> list[str]:
        """Return those of the files that have no row yet."""
        return [name for name in names if as_text(name) not in self.names]

    def is_over(self, names: list[str]) -> bool:
        """Tell whether every file was enqueued and no row is waiting.

        Rows that are RUNNING without a runner are nothing a second start could wait for.
        """
        enqueued = len(self.names) >= self.files or not self.missing(names)
        return enqueued and not self.rows().filter(status=TaskResultStatus.READY).exists()

    def is_left(self) -> bool:
        """Tell whether rows wait or run, or are still to be written."""
        return len(self.names) < self.files or self.rows().exclude(status__in=FINISHED).exists()

    def enqueue(self, names: list[str], stopped: Callable[[], bool]) -> Iterator[int]:
        """Write a row for each file, in chunks; yield how many were written after each.

        Ends early, between two chunks, once `stopped()` is true.
        """
        same = {"folder": self.folder, "run": self.id, "files": self.files}
        for chunk in batched(names, CHUNK):
            if stopped():
                return
            texts = [as_text(name) for name in chunk]
            measure.get_backend().enqueue_many([(measure, [text], same) for text in texts])
            self.names.update(texts)
            yield len(chunk)

    def statuses(self) -> dict[str, int]:
        """Return how many rows have each status."""
        rows = self.rows().order_by().values_list("status").annotate(Count("id"))
        return dict(rows)

    def finished(self) -> Iterator["Measured"]:
        """Yield what became of each file that is done."""
        rows = self.rows().finished().order_by("id")
        for row in rows.iterator(chunk_size=CHUNK):
            yield Measured(
                row.args[0],
                row.last_attempted_at,
                row.finished_at,
                row.return_value,
                row.errors[-1] if row.errors else None,
            )


@dataclass
class Measured:
    """One file of a run: when it ran, and what came out."""

    name: str
    started_at: datetime
    finished_at: datetime
    value: dict[str, Any] | None
    error: list[str] | None

    @property
    def seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()
