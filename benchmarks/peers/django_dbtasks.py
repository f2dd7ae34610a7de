"""django-dbtasks: the distribution of that name on the index, whose module is `dbtasks` as well.

Owns its adapter. Never meets our own package: its environment has no path to this repository.
"""

from .on_django import DJANGO, PERSISTENT, PSYCOPG, DjangoPeer
from .peer import Setting


class DjangoDbtasks(DjangoPeer):
    """Threads that share a loop, which claims as many rows as threads are free."""

    name = "django-dbtasks"
    requirements = ("django-dbtasks==0.5.0", DJANGO, PSYCOPG)
    table = "dbtasks_scheduledtask"
    django = {
        "INSTALLED_APPS": ["dbtasks"],
        "TASKS": {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}},
    }
    default = Setting(("django-admin", "taskrunner"), "as documented", interval=1.0)
    best = Setting(
        ("django-admin", "taskrunner", "-w", "16", "--delay", "0.01"),
        "16 threads, and a loop that hardly sleeps",
        django=PERSISTENT,
    )


PEER = DjangoDbtasks()
