"""dbtasks, by the steps that the peers are measured by.

Owns its adapter. Never uses what a user could not.
"""

from .on_django import DjangoPeer
from .peer import Setting


class Ours(DjangoPeer):
    """This repository, in the environment of the tool."""

    name = "dbtasks"
    table = "dbtasks_scheduledtask"
    django = {
        "INSTALLED_APPS": ["dbtasks"],
        "TASKS": {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}},
    }
    default = Setting(("django-admin", "taskrunner"), "as documented")
    best = Setting(default.command, "2 runners, one for each processor", processes=2)

    def write(self, count: int) -> None:
        self.enqueue_many(count)

    def enqueue_many(self, count: int) -> None:
        self.noop.enqueue_many([((), {})] * count)


PEER = Ours()
