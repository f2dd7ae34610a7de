"""dj-queue: Solid Queue's design for Django.

Owns its adapter. Never tunes the default.
"""

from typing import Any

from .on_django import DJANGO, PERSISTENT, PSYCOPG, DjangoPeer
from .peer import Setting


def tasks(options: dict[str, Any]) -> dict[str, Any]:
    """Return the TASKS setting with those options."""
    backend = {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": options}
    return {"TASKS": {"default": backend}}


class DjQueue(DjangoPeer):
    """A row for each job, and a second one for its state: ready, then claimed, then none."""

    name = "dj-queue"
    requirements = ("dj-queue==0.14.2", DJANGO, PSYCOPG)
    table = "dj_queue_jobs"
    tables = ("dj_queue_jobs", "dj_queue_ready_executions", "dj_queue_claimed_executions")
    ends = "SELECT finished_at AS at FROM {table} WHERE finished_at IS NOT NULL"
    waiting = "SELECT FROM {table} WHERE finished_at IS NULL"
    django = {"INSTALLED_APPS": ["dj_queue"], **tasks({})}
    default = Setting(("django-admin", "dj_queue"), "as documented")
    best = Setting(
        ("django-admin", "dj_queue"),
        "2 processes of 2 threads, 32 rows ahead for each; open connections kept",
        django=tasks({"workers": [{"processes": 2, "threads": 2, "prefetch_multiplier": 32}]})
        | PERSISTENT,
    )

    def copy(self, count: int) -> None:
        self.multiply("dj_queue_jobs", count, {"id": "gen_random_uuid()"})
        self.run(
            "INSERT INTO dj_queue_ready_executions "
            "(job_id, backend_alias, queue_name, priority, created_at, latency_started_at) "
            "SELECT job.id, ready.backend_alias, ready.queue_name, ready.priority, "
            "ready.created_at, ready.latency_started_at "
            "FROM dj_queue_ready_executions AS ready, dj_queue_jobs AS job "
            "WHERE job.id <> ready.job_id"
        )

    def enqueue_many(self, count: int) -> None:
        self.noop.get_backend().enqueue_all([(self.noop, [], {})] * count)


PEER = DjQueue()
