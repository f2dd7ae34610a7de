"""django-dbtasks: the distribution of that name on the index, whose module is `dbtasks` as well.

Owns its adapter. Never meets our own package: its environment has no path to this repository.
"""

from .on_django import DJANGO, POOLED, PSYCOPG, DjangoPeer
from .peer import Setting


class DjangoDbtasks(DjangoPeer):
    """Threads that share a loop, which claims as many rows as threads are free."""

    name = "django-dbtasks"
    requirements = ("django-dbtasks==0.5.0", DJANGO, PSYCOPG)
    table = "dbtasks_scheduledtask"
    # The row of a worker that was not stopped by Ctrl-C keeps its successor from starting.
    tables = ("dbtasks_scheduledtask", "dbtasks_worker")
    django = {
        "INSTALLED_APPS": ["dbtasks"],
        "TASKS": {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}},
    }
    default = Setting(("django-admin", "taskrunner"), "as documented", interval=1.0)
    best = Setting(
        ("django-admin", "taskrunner", "-w", "64", "--delay", "0.01"),
        "64 threads with a connection pool, since each task closes its own; short sleeps",
        django=POOLED,
    )


PEER = DjangoDbtasks()
