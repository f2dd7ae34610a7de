"""Calls of tasks: how one becomes a row, and how a row becomes a result.

Owns what enqueue() stores and what get_result() returns. Never writes a row.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.tasks import TaskResultStatus, base
from django.utils import timezone

from . import store
from .base import payload, registry
from .base.result import TaskResult, make_errors, make_result, make_worker_ids
from .base.secrets import NOTE, secrets_of, without_note
from .base.stored import policy_text, read_policies
from .base.task import Task, task_for
from .exceptions import PolicyUnreadable, TaskNotFound
from .models import ScheduledTask
from .options import Options
from .store import NewTask

try:
    from uuid import uuid7  # type: ignore[attr-defined,unused-ignore]  # Python 3.14
except ImportError:
    from uuid_utils.compat import uuid7


def due_after(delay: timedelta, task: Task, db: str) -> base.Task:
    """Return the task with a run_after in place of its delay."""
    # On the database's clock, which decides when the delay is over.
    run_after = store.now(db) + delay
    return task_for(task.module_path, task, {"run_after": run_after, "delay": None})


def prepare(
    alias: str,
    options: Options,
    task: base.Task,
    args: Iterable[Any],
    kwargs: dict[str, Any],
) -> tuple[NewTask, TaskResult]:
    """Return the row to write and the result for the caller; nothing is written yet.

    Raise TypeError if an argument, or the meta of the task, is not JSON.
    """
    plain_args, args_text = payload.dump(list(args), "args", options.max_payload)
    plain_kwargs, kwargs_text = payload.dump(dict(kwargs), "kwargs", options.max_payload)
    now = timezone.now()
    row = NewTask(
        uuid7(),
        task.module_path,
        alias,
        task.queue_name,
        int(task.priority),
        args_text,
        kwargs_text,
        policy_text(task),
        _meta_text(task, options, plain_kwargs),
        now,
        task.run_after,
    )
    return row, _new_result(alias, row, task, plain_args, plain_kwargs)


def _meta_text(task: base.Task, options: Options, kwargs: dict[str, Any]) -> str | None:
    """Return the meta of the row as JSON: that of the task, and which arguments are secrets."""
    meta = getattr(task, "meta", None)
    secrets = secrets_of(task.func, task.takes_context, options.mask)
    if meta is None and secrets is None:
        return None
    own, text = payload.dump(meta or {}, "meta", options.max_payload)
    return text if secrets is None else payload.text({**own, NOTE: secrets.note(kwargs)})


def _new_result(alias: str, row: NewTask, task: base.Task, args: Any, kwargs: Any) -> TaskResult:
    """Return the result of a row that is not written yet."""
    return make_result(
        {
            "task": task,
            "id": str(row.id),
            "status": TaskResultStatus.READY,
            "enqueued_at": row.enqueued_at,
            "started_at": None,
            "finished_at": None,
            "last_attempted_at": None,
            "args": args,
            "kwargs": kwargs,
            "backend": alias,
            "errors": [],
            "worker_ids": [],
        }
    )


def result_of(row: ScheduledTask, options: Options) -> TaskResult:
    """Return the result that the row holds, even if its function no longer exists."""
    try:
        found = registry.find(row.task_path, options.task_modules)
    except TaskNotFound:
        found = None
    try:
        policies = read_policies(row.policy)
    except PolicyUnreadable:  # the row can be shown all the same
        policies = {}
    values = {
        "priority": row.priority,
        "queue_name": row.queue_name,
        "backend": row.backend,
        "run_after": row.run_after,
        "meta": without_note(row.meta),
    }
    running = [row.worker_id] if row.worker_id else []
    return make_result(
        {
            "task": task_for(row.task_path, found, values | policies),
            "id": str(row.pk),
            "status": TaskResultStatus(row.status),
            "enqueued_at": row.enqueued_at,
            "started_at": row.started_at or (row.last_attempted_at if running else None),
            "finished_at": row.finished_at,
            "last_attempted_at": row.last_attempted_at,
            "args": row.args,
            "kwargs": row.kwargs,
            "backend": row.backend,
            "errors": make_errors(row.errors if isinstance(row.errors, list) else []),
            "worker_ids": make_worker_ids(
                (row.worker_ids if isinstance(row.worker_ids, list) else []) + running, row.attempt
            ),
            "_return_value": row.return_value,
        }
    )
