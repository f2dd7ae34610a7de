"""The queue in Django's admin.

Owns what is shown of rows, workers and schedules, and what may be done with them there. Never runs
or imports task code: a row whose function is gone shows like any other.

Read in this order: mask, render, changelist, actions, columns, tasks, workers, schedules.
"""

from . import schedules, tasks, workers

__all__ = ["schedules", "tasks", "workers"]
