"""The queue in Django's admin.

Owns how rows, workers and schedules are shown, and the actions on them. Never runs a task, and
never imports one to show its row: a row whose function is gone is shown like any other.

Read in this order: mask, render, databases, changelist, actions, columns, tasks, workers,
schedules.
"""

from . import schedules, tasks, workers

__all__ = ["schedules", "tasks", "workers"]
