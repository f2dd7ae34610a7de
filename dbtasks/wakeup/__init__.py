"""Wake-ups: hints that there may be work.

Owns how a runner learns of rows that others enqueue. Never the only way, because runners also poll:
a lost wake-up delays a task by at most one polling interval.

Read in this order: guard, hints, publishing, notify, announcing, inotify, watchers.
"""

from .announcing import announce
from .hints import push_of, tell, tell_late
from .notify import Wakeable, became_due, hint, register, rows_due, unregister
from .watchers import Watcher, can_wake, watchers_of

__all__ = [
    "Wakeable",
    "Watcher",
    "announce",
    "became_due",
    "can_wake",
    "hint",
    "push_of",
    "register",
    "rows_due",
    "tell",
    "tell_late",
    "unregister",
    "watchers_of",
]
