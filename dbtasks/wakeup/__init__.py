"""Wake-ups: hints that there may be work.

Owns how a runner learns of rows that others enqueue. Never the only way, because runners also poll:
a lost wake-up delays a task by at most one polling interval.

Read in this order: guard, hints, publishing, notify, inotify, watchers.
"""

from .hints import push_of, tell
from .notify import Wakeable, became_due, hint, register, rows_due, unregister
from .watchers import Watcher, can_wake, watchers_of

__all__ = [
    "Wakeable",
    "Watcher",
    "became_due",
    "can_wake",
    "hint",
    "push_of",
    "register",
    "rows_due",
    "tell",
    "unregister",
    "watchers_of",
]
