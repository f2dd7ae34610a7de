"""django-tasks-db: Django's reference backend, its own project.

Owns its adapter. Never tunes the default.
"""

from .on_django import DJANGO, PERSISTENT, PSYCOPG, DjangoPeer
from .peer import Setting


class DjangoTasksDb(DjangoPeer):
    """One task at a time for each worker; each claims one row by SELECT … FOR UPDATE."""

    name = "django-tasks-db"
    requirements = ("django-tasks-db==0.13.0", DJANGO, PSYCOPG)
    table = "django_tasks_database_dbtaskresult"
    django = {
        "INSTALLED_APPS": ["django_tasks_db"],
        "TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
    }
    default = Setting(("django-admin", "db_worker"), "as documented", interval=1.0)
    best = Setting(
        ("django-admin", "db_worker", "--interval", "0.02", "-v", "0"),
        "6 workers, since one runs one task at a time; open connections kept",
        processes=6,
        django=PERSISTENT,
    )


PEER = DjangoTasksDb()
