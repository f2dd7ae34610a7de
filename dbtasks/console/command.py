"""The base class of the commands.

Owns that what keeps a command from starting is said in one sentence, also if it breaks the system
checks. Never checks anything itself.
"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from ..backend import our_backends
from . import preflight


class TasksCommand(BaseCommand):
    """A command that looks at its database itself, and whose system checks may do without."""

    def check(self, *args: Any, **kwargs: Any) -> Any:
        preflight.check_settings()
        try:
            return super().check(*args, **kwargs)
        except DatabaseError:
            # Checks of models ask MySQL for its version. The command says that a database of ours
            # is away, or waits for it.
            if not any(_is_away(backend.database) for backend in our_backends()):
                raise


def _is_away(db: str) -> bool:
    try:
        preflight.check_connection(db)
    except CommandError:
        return True
    return False
