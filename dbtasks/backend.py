"""``DatabaseBackend``: Django's door to the queue.

Owns validation, the making of rows and of results. Never imports models or the store at module
level, so that tasks, and with them their backend, can be imported before apps are ready.
"""

import os
import platform
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router, transaction
from django.db.transaction import TransactionManagementError
from django.tasks import base
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone

from . import options, payload, registry
from .exceptions import TaskNotFound
from .task import (
    Task,
    TaskResult,
    decode_policies,
    make_errors,
    make_result,
    policies_of,
    task_for,
)

if TYPE_CHECKING:
    from .execute import Attempt
    from .models import ScheduledTask, ScheduledTaskQuerySet
    from .store import NewTask, Outcome

try:
    from uuid import uuid7  # type: ignore[attr-defined,unused-ignore]  # Python 3.14
except ImportError:
    from uuid_utils.compat import uuid7

# Names longer than their column are refused here, on every database alike.
MAX_PATH, MAX_QUEUE = 255, 100
MISSING_APP = "TASKS[{!r}] uses dbtasks, which is not in INSTALLED_APPS."


class DatabaseBackend(BaseTaskBackend):
    """Keeps tasks as rows of the project's database, for a Runner to run.

    Django makes one instance for each thread and alias: it holds no state but its settings.
    """

    task_class = Task
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        # Options that are wrong are reported by check(), and raised when they are first needed:
        # an exception here would keep task modules from being imported, and check from running.

    @cached_property
    def config(self) -> options.Options:
        """The parsed OPTIONS; raise ImproperlyConfigured if one is wrong."""
        return options.parse(self.alias, self.options)

    @property
    def database(self) -> str:
        """Alias of the database that holds the rows: a router's word, else OPTIONS' own."""
        from django.apps import apps

        if not apps.is_installed("dbtasks"):
            raise ImproperlyConfigured(MISSING_APP.format(self.alias))
        from .models import ScheduledTask

        for chooser in router.routers:
            choose = getattr(chooser, "db_for_write", None)
            if choose is not None and (alias := choose(ScheduledTask)):
                return str(alias)
        return self.config.database

    # Enqueue

    def validate_task(self, task: base.Task) -> None:
        """Raise InvalidTask if the task cannot be stored or run."""
        super().validate_task(task)
        if len(task.module_path) > MAX_PATH:
            raise InvalidTask(
                f"The path {task.module_path!r} has more than the {MAX_PATH} characters allowed."
            )
        if len(task.queue_name) > MAX_QUEUE:
            raise InvalidTask(
                f"The queue name {task.queue_name!r} has more than the {MAX_QUEUE} characters "
                "allowed. Give the queue a shorter name."
            )

    def enqueue(self, task: base.Task, args: Iterable[Any], kwargs: dict[str, Any]) -> TaskResult:
        """Write the row of one call, in the caller's transaction; return its result.

        Raise InvalidTask if the task is not valid, TypeError if an argument is not JSON: no row
        is written then. With the option ``immediate`` the task has run when this returns.
        """
        self.validate_task(task)
        row, result = self.prepare(task, args, kwargs)
        self._write([(task, row, result)])
        return result

    def enqueue_many(
        self, calls: Iterable[tuple[base.Task, Iterable[Any], dict[str, Any]]]
    ) -> list[TaskResult]:
        """Write the rows of many calls, in a few statements; return their results in order.

        Each call is ``(task, args, kwargs)``. All rows are written in the caller's transaction,
        or none. Raises what enqueue() raises.
        """
        prepared = []
        last = None
        for task, args, kwargs in calls:
            if task is not last:
                self.validate_task(task)
                last = task
            prepared.append((task, *self.prepare(task, args, kwargs)))
        if prepared:
            self._write(prepared)
        return [result for _, _, result in prepared]

    async def aenqueue_many(
        self, calls: Iterable[tuple[base.Task, Iterable[Any], dict[str, Any]]]
    ) -> list[TaskResult]:
        """See enqueue_many()."""
        return await sync_to_async(self.enqueue_many, thread_sensitive=True)(calls)

    def prepare(
        self, task: base.Task, args: Iterable[Any], kwargs: dict[str, Any]
    ) -> tuple["NewTask", TaskResult]:
        """Return the row to write and the result to hand back; nothing is written yet.

        Raise TypeError if an argument is not JSON.
        """
        from . import store
        from .store import NewTask

        limit = self.config.max_payload
        plain_args, args_text = payload.dump(list(args), "args", limit)
        plain_kwargs, kwargs_text = payload.dump(dict(kwargs), "kwargs", limit)
        now = timezone.now()
        run_after = task.run_after
        if isinstance(task, Task) and task.delay is not None:
            # By the clock that will be asked whether it is over.
            run_after = store.now(self.database) + task.delay
            task = task_for(task.module_path, task, {"run_after": run_after, "delay": None})
        policy = policies_of(task)
        row = NewTask(
            id := uuid7(),
            task.module_path,
            self.alias,
            task.queue_name,
            int(task.priority),
            args_text,
            kwargs_text,
            payload.text(policy) if policy else None,
            now,
            run_after,
        )
        result = make_result(
            {
                "task": task,
                "id": str(id),
                "status": TaskResultStatus.READY,
                "enqueued_at": now,
                "started_at": None,
                "finished_at": None,
                "last_attempted_at": None,
                "args": plain_args,
                "kwargs": plain_kwargs,
                "backend": self.alias,
                "errors": [],
                "worker_ids": [],
            }
        )
        return row, result

    def _write(self, prepared: Sequence[tuple[base.Task, "NewTask", TaskResult]]) -> None:
        """Write the rows now, or when the caller's transaction commits, as each task wants it."""
        groups: dict[bool | str, list[Any]] = {}
        for call in prepared:
            own = getattr(call[0], "enqueue_on_commit", None)
            groups.setdefault(self.config.enqueue_on_commit if own is None else own, []).append(
                call
            )
        for later, calls in groups.items():
            if later:
                using = later if isinstance(later, str) else None
                transaction.on_commit(partial(self._write_now, calls), using=using)
            else:
                self._write_now(calls)

    def _write_now(self, prepared: Sequence[tuple[base.Task, "NewTask", TaskResult]]) -> None:
        from . import store, wakeup

        db = self.database
        rows = [row._replace(id=store.key(db, row.id)) for _, row, _ in prepared]
        hint = None if self.config.immediate else wakeup.hint(db, self.alias)
        is_told = store.enqueue(db, rows, hint)
        self.announce([result for _, _, result in prepared], is_told)
        if self.config.immediate:
            for row, (_, _, result) in zip(rows, prepared, strict=True):
                self._run_now(db, row.id, result)

    def announce(self, results: Iterable[TaskResult], is_told: bool = False) -> None:
        """Tell of rows that were written: receivers of signals, and, after the commit, runners.

        Other processes have heard of it already if `is_told`.
        """
        from . import wakeup

        if self.config.signals:
            for result in results:
                task_enqueued.send_robust(sender=type(self), task_result=result)
        if not self.config.immediate:
            db = self.database
            _after_commit(db, lambda: wakeup.notify(db, self.alias, is_told))

    def _run_now(self, db: str, id: Any, result: TaskResult) -> None:
        """Run the row just written in this thread, unless its run_after is to come."""
        from . import execute, liveness, store
        from .models import READY, Hold

        worker_id = make_worker_id()
        with liveness.alive(db, worker_id, self.alias, self.config.worker_timeout):
            claim = store.claim_one(db, self.alias, worker_id, id, Hold.IMMEDIATE)
            if claim is None:
                return
            attempt = execute.Attempt(self.job(worker_id), claim)
            attempt.task = result.task
            outcome = self._run_inside(attempt, result.task.module_path)
            if not store.settle(db, [outcome]) and outcome.status == READY:
                store.settle(db, [attempt.cancelled(outcome)])
        result.refresh()
        if isinstance(attempt.error, KeyboardInterrupt):
            raise attempt.error

    def _run_inside(self, attempt: "Attempt", path: str) -> "Outcome":
        """Run the attempt in the caller's transactions, if there are any; leave them usable.

        There a task that fails, or swallows an error of the database, is undone to a savepoint:
        PostgreSQL would refuse every later statement, ours included.
        """
        from . import execute

        with ExitStack() as stack:
            joined = [c for c in connections.all(initialized_only=True) if c.in_atomic_block]
            for connection in joined:
                stack.enter_context(transaction.atomic(connection.alias))
            depths = [len(connection.atomic_blocks) for connection in joined]
            outcome = attempt.run()
            for connection, depth in zip(joined, depths, strict=True):
                execute.roll_back_open(connection, depth, path)
            if attempt.error is None and any(map(_is_broken, joined)):
                outcome = attempt.broken(
                    TransactionManagementError(
                        "The task went on after an error of the database, inside the caller's "
                        "transaction: what it wrote is undone."
                    )
                )
            if attempt.error is not None:
                for connection in joined:
                    transaction.set_rollback(True, using=connection.alias)
        if not joined:
            execute.leave_clean(path)
        return outcome

    def job(self, worker_id: str) -> Any:
        """Return what the attempts of a worker of this backend share."""
        from .execute import Job

        return Job(type(self), self.alias, self.database, self.config, worker_id)

    # Results

    def get_result(self, result_id: str) -> TaskResult:
        """Return the result of that id, as it stands in the database now.

        Raise TaskResultDoesNotExist if this backend has no such row; a malformed id is none.
        """
        from .models import ScheduledTask

        try:
            rows = ScheduledTask.objects.using(self.database)
            return self.result_of(rows.get(pk=_uuid(result_id), backend=self.alias))
        except (ValueError, ScheduledTask.DoesNotExist):
            raise TaskResultDoesNotExist(result_id) from None

    def result_of(self, row: "ScheduledTask") -> TaskResult:
        """Return the result that the row holds, also if its function is gone."""
        try:
            found = registry.find(row.task_path, self.config.task_modules)
        except TaskNotFound:
            found = None
        running = [row.worker_id] if row.worker_id else []
        return make_result(
            {
                "task": task_for(
                    row.task_path,
                    found,
                    {
                        "priority": row.priority,
                        "queue_name": row.queue_name,
                        "backend": row.backend,
                        "run_after": row.run_after,
                        **decode_policies(row.policy),
                    },
                ),
                "id": str(row.pk),
                "status": TaskResultStatus(row.status),
                "enqueued_at": row.enqueued_at,
                "started_at": row.started_at or (row.last_attempted_at if running else None),
                "finished_at": row.finished_at,
                "last_attempted_at": row.last_attempted_at,
                "args": row.args,
                "kwargs": row.kwargs,
                "backend": row.backend,
                "errors": make_errors(row.errors or []),
                "worker_ids": (row.worker_ids or []) + running,
                "_return_value": row.return_value,
            }
        )

    def is_finished(self, result_id: str) -> bool:
        """Tell whether the task has ended; raise TaskResultDoesNotExist if there is no such row."""
        row = self._own(result_id).only("status").first()
        if row is None:
            raise TaskResultDoesNotExist(result_id)
        if not row.is_finished and connections[self.database].in_atomic_block:
            raise RuntimeError(
                f"Task {row.pk} cannot be waited for inside a transaction: a runner sees the row "
                "only once that is committed. Wait after the atomic() block."
            )
        return row.is_finished

    def _own_ids(self, result_id: Any) -> list[UUID]:
        return list(self._own(result_id).values_list("pk", flat=True))

    def _own(self, result_id: Any) -> "ScheduledTaskQuerySet":
        """Return this backend's row with that id, or nothing; a malformed id is none."""
        from .models import ScheduledTask

        rows = ScheduledTask.objects.using(self.database).filter(backend=self.alias)
        try:
            return rows.filter(pk=_uuid(result_id))
        except ValueError:
            return rows.none()

    async def ais_finished(self, result_id: str) -> bool:
        """See is_finished()."""
        return await sync_to_async(self.is_finished, thread_sensitive=True)(result_id)

    # Acts by hand

    def cancel(self, result_id: str) -> bool:
        """Cancel the task: a row that waits ends at once, a running one is asked to end.

        Return False if it has finished, or there is no such row. It becomes FAILED, with
        TaskCancelled among its errors; a running one within seconds, unless its task succeeds
        before it is stopped.
        """
        from . import store

        db, ids = self.database, self._own_ids(result_id)

        def waiting() -> int:
            return store.cancel(db, ids, self.retain_failed)

        # Once more, for a row that was running when we first looked and then waits for a retry.
        return bool(waiting() or store.request_cancel(db, ids) or waiting())

    async def acancel(self, result_id: str) -> bool:
        """See cancel()."""
        return await sync_to_async(self.cancel, thread_sensitive=True)(result_id)

    def retain_failed(self, row: "ScheduledTask") -> timedelta | None:
        """Return how long the row stays if it fails: by the call, the task, or the options."""
        stay: timedelta | None = self._policy(row, "retain")
        return stay or self.config.retain(row.task_path, TaskResultStatus.FAILED)

    def may_retry_lost(self, row: "ScheduledTask") -> bool:
        """Tell whether the row may start again after its runner was lost."""
        return (self._policy(row, "on_lost") or self.config.on_lost) == "retry"

    def _policy(self, row: "ScheduledTask", name: str) -> Any:
        """Return the call's own policy, else that of the task, as far as it is imported."""
        call = decode_policies(row.policy).get(name)
        return getattr(registry.get(row.task_path), name, None) if call is None else call

    def retry(self, result_id: str) -> bool:
        """Make the row READY again if it is FAILED; return whether that was so."""
        from . import store, wakeup

        db = self.database
        done = bool(store.retry(db, self._own_ids(result_id)))
        _after_commit(db, lambda: wakeup.notify(db, self.alias))
        return done

    # Checks

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Report what is wrong with this backend's settings alone; checks.py looks further."""
        from django.apps import apps

        found: list[checks.CheckMessage] = []
        if not apps.is_installed("dbtasks"):
            found.append(
                checks.Error(
                    MISSING_APP.format(self.alias),
                    hint="Add 'dbtasks' to INSTALLED_APPS and run 'manage.py migrate'.",
                    id="dbtasks.E001",
                )
            )
        wrong = options.problems(self.alias, self.options)
        return found + [checks.Error(sentence, id="dbtasks.E002") for sentence in wrong]


def _is_broken(connection: Any) -> bool:
    """Tell whether the connection's transaction can only be rolled back."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return True
    return bool(connection.needs_rollback)


def _after_commit(db: str, tell: Callable[[], None]) -> None:
    """Call it once the caller's transaction has committed, or now if there is none."""
    connection = connections[db]
    # With autocommit switched off nobody knows when that is, and runners will poll.
    if connection.in_atomic_block or connection.get_autocommit():
        transaction.on_commit(tell, using=db)


def _uuid(result_id: Any) -> UUID:
    return result_id if isinstance(result_id, UUID) else UUID(str(result_id))


def make_worker_id(name: str | None = None) -> str:
    """Return an id that no other process start has: the name, or host and pid, then chance."""
    name = name or f"{platform.node() or 'host'}-{os.getpid()}"
    return f"{name[:100]}-{secrets.token_hex(4)}"
