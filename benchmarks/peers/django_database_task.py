"""django-database-task.

Owns its adapter. Never tunes the default.
"""

from typing import Any

from .on_django import DJANGO, PERSISTENT, PSYCOPG, DjangoPeer
from .peer import Setting


def tasks(backend: str) -> dict[str, Any]:
    """Return the TASKS setting with that backend."""
    return {"TASKS": {"default": {"BACKEND": f"django_database_task.{backend}"}}}


class DjangoDatabaseTask(DjangoPeer):
    """One task at a time for each worker."""

    name = "django-database-task"
    requirements = ("django-database-task==0.6.0", DJANGO, PSYCOPG)
    table = "django_database_task_databasetask"
    django = {
        "INSTALLED_APPS": ["django_database_task"],
        **tasks("backends.DatabaseTaskBackend"),
    }
    default = Setting(
        ("django-admin", "run_database_tasks", "--continuous"), "as documented", interval=5.0
    )
    best = Setting(
        ("django-admin", "run_database_tasks", "--continuous", "-v", "0"),
        "2 workers that wait for NOTIFY; open connections kept",
        processes=2,
        django=tasks("postgres.PostgresNotifyDatabaseBackend") | PERSISTENT,
    )


PEER = DjangoDatabaseTask()
