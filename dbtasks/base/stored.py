"""The policies that stand in a row.

Owns what a row stores about the policies of its task, and how that is read again. Never touches the
database.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.tasks import base

from ..exceptions import PolicyUnreadable
from . import payload, policy, registry
from .task import Task

# The policies that a row may store: name, to JSON, from JSON.
POLICIES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "max_attempts": (int, policy.check_attempts),
    "backoff": (lambda value: value, policy.check_backoff),
    "timeout": (float, policy.check_timeout),
    "on_lost": (str, policy.check_on_lost),
    "retain": (timedelta.total_seconds, policy.check_retain),
}
# These decide about a row in processes that have not imported its task: one that rescues the row or
# cancels it. So each row stores them, whoever gave them.
DETACHED = ("on_lost", "retain")

# The text for each declared task, by its path: most calls are of one of these.
_declared_texts: dict[str, tuple[Task, str | None]] = {}


def policy_text(task: base.Task) -> str | None:
    """Return what a row of the task stores about its policies, as JSON; None for nothing.

    These are the policies in which the task differs from its declaration, and those in DETACHED.
    """
    if not isinstance(task, Task):
        return None
    path = task.module_path
    declared = registry.get(path)
    if declared is not task:
        return _policy_text(task, declared)
    known = _declared_texts.get(path)
    if known is None or known[0] is not task:
        known = _declared_texts[path] = task, _policy_text(task, task)
    return known[1]


def _policy_text(task: Task, declared: base.Task | None) -> str | None:
    values = {}
    for name, (encode, _) in POLICIES.items():
        value = getattr(task, name)
        # A row stores no function; the declared task has it.
        if value is None or callable(value):
            continue
        if name in DETACHED or value != getattr(declared, name, None):
            # JSON has no infinity. None says that there is no limit.
            values[name] = None if value == policy.NO_LIMITS.get(name, ...) else encode(value)
    return payload.text(values) if values else None


def read_policy(stored: Any, name: str) -> Any:
    """Return one policy of a row, from its JSON value; None if the row does not store it.

    Raise PolicyUnreadable if it is not valid, for example because a later version wrote it.
    """
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise PolicyUnreadable(f"The row's policy {stored!r:.80} cannot be read.")
    if name not in stored:
        return None
    try:
        value = stored[name]
        return POLICIES[name][1](policy.NO_LIMITS.get(name) if value is None else value)
    except (ValueError, TypeError) as error:
        raise PolicyUnreadable(f"The row's {name} cannot be read: {error}") from None


def read_policies(stored: Any) -> dict[str, Any]:
    """Return the values of the task's fields for the policies of a row, from its JSON value.

    Policies that only a later version knows are left out. Raise PolicyUnreadable if another one is
    not valid.
    """
    if stored is None:
        return {}
    names = [name for name in POLICIES if not isinstance(stored, dict) or name in stored]
    return {name: read_policy(stored, name) for name in names}


def policy_without_task(task_path: str, stored: Any, name: str) -> Any:
    """Return the row's own policy, or else that of the task as it is declared now, if imported.

    Raise PolicyUnreadable if the row's own cannot be read.
    """
    own = read_policy(stored, name)
    return getattr(registry.get(task_path), name, None) if own is None else own
