"""django-ox.

Owns its adapter. Never tunes the default.
"""

from .on_django import DJANGO, PERSISTENT, PSYCOPG, DjangoPeer
from .peer import Setting


class DjangoOx(DjangoPeer):
    """A thread pool for each worker process."""

    name = "django-ox"
    requirements = ("django-ox==1.9.1", DJANGO, PSYCOPG)
    table = "django_ox_oxtask"
    django = {
        "INSTALLED_APPS": ["django_ox"],
        "TASKS": {"default": {"BACKEND": "django_ox.backend.OxBackend"}},
    }
    default = Setting(("django-admin", "ox_worker"), "as documented", interval=1.0)
    best = Setting(
        (*default.command, "--processes", "2", "--concurrency", "2", "--interval", "0.02"),
        "2 processes of 2 threads; open connections kept",
        django=PERSISTENT,
    )

    def enqueue_many(self, count: int) -> None:
        from django_ox.bulk import enqueue_many

        enqueue_many(self.noop, [((), {})] * count)


PEER = DjangoOx()
