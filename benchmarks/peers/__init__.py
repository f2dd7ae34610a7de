"""The peers: who they are, and what `--against` means.

Owns the list of peers and the reading of their names. Never imports a peer's package: this
module is read by the tool and, as `peers`, by the Python of each peer's own environment.
"""

import difflib
import importlib
from collections.abc import Iterable

from .peer import Peer

# Each name, and the module here that adapts it. dbtasks itself is measured by the same steps.
MODULES = {
    "dbtasks": "ours",
    "django-tasks-db": "django_tasks_db",
    "django-dbtasks": "django_dbtasks",
    "django-database-task": "django_database_task",
    "django-ox": "django_ox",
    "dj-queue": "dj_queue",
    "procrastinate": "procrastinate",
    "pgqueuer": "pgqueuer",
    "celery": "celery",
    "huey": "huey",
}
PEERS = tuple(name for name in MODULES if name != "dbtasks")


def chosen(words: Iterable[str]) -> list[str]:
    """Return the peers named by `words`, in our order: names, comma lists, or "all".

    Raise ValueError for a name that is none of them.
    """
    names = [name.strip().lower() for word in words for name in word.split(",") if name.strip()]
    for name in names:
        if name not in {"all", *PEERS}:
            raise ValueError(unknown(name))
    return [name for name in PEERS if name in names or "all" in names]


def unknown(name: str) -> str:
    """Return the sentence that says what may be named."""
    near = difflib.get_close_matches(name, PEERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown peer {name!r}; {hint}choose from {', '.join(PEERS)}, or all"


def load(name: str) -> Peer:
    """Return the peer of that name."""
    peer: Peer = importlib.import_module(f".{MODULES[name]}", __package__).PEER
    return peer
