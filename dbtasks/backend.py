"""``DatabaseBackend``, the task backend that Django loads.

Owns validation, writing calls of tasks, and which backends in TASKS are ours. Never imports models
or the store at module level, because tasks and their backend may be imported before Django has
loaded its apps.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import connections, router, transaction
from django.tasks import DEFAULT_TASK_QUEUE_NAME, base, task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskResultStatus
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued

from . import distribution, options
from .base import registry
from .base.lengths import MAX_PATH, MAX_QUEUE
from .base.result import TaskResult
from .base.stored import policy_without_task
from .base.task import Task
from .exceptions import PolicyUnreadable, RunnerError

if TYPE_CHECKING:
    from .execution.attempt import WorkerContext
    from .models import ScheduledTask, ScheduledTaskQuerySet
    from .store import NewTask, Place

# One call: the task, its positional and its keyword arguments.
Call = tuple[base.Task, Iterable[Any], dict[str, Any]]
# A call to write: its task, its row, and the result for the caller.
Prepared = tuple[base.Task, "NewTask", TaskResult]


class DatabaseBackend(BaseTaskBackend):
    """Keeps tasks as rows of the project's database, for a Runner to run.

    Django makes one instance for each thread and alias, so it holds no state but its settings.
    """

    task_class = Task
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        # check() reports invalid options, and `config` raises them when they are first needed. An
        # exception here would prevent task modules from being imported, and checks from running.

    @cached_property
    def config(self) -> options.Options:
        """The parsed OPTIONS; raise ImproperlyConfigured if one is not valid."""
        return options.parsed(self.alias, self.options)

    @property
    def database(self) -> str:
        """The alias of the database that holds the rows, by a router or else by OPTIONS."""
        distribution.check_app(self.alias)
        from .models import ScheduledTask

        for chooser in router.routers:
            choose = getattr(chooser, "db_for_write", None)
            if choose is not None and (alias := choose(ScheduledTask)):
                return str(alias)
        return self.config.database

    # Enqueue

    def validate_task(self, task: base.Task) -> None:
        """Raise InvalidTask if the task cannot be stored or run.

        Raise ImproperlyConfigured if the app is missing. Django calls this at ``@task`` too.
        """
        distribution.check_app(self.alias)
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

        Raise InvalidTask if the task is not valid, TypeError if an argument is not JSON. No row is
        written then. With the option ``immediate`` the task has run when this returns.
        """
        self.validate_task(task)
        self._check_home(task)
        row, result = self.prepare(task, args, kwargs)
        self._write([(task, row, result)])
        return result

    def enqueue_many(self, calls: Iterable[Call]) -> list[TaskResult]:
        """Write the rows of many calls, in a few statements; return their results in order.

        Each call is ``(task, args, kwargs)``. All rows are written, or none, in the caller's
        transaction. Raise what enqueue() raises.
        """
        prepared = []
        last = None
        for task, args, kwargs in calls:
            if task is not last:
                self.validate_task(task)
                self._check_home(task)
                last = task
            prepared.append((task, *self.prepare(task, args, kwargs)))
        if prepared:
            self._write(prepared)
        return [result for _, _, result in prepared]

    def _check_home(self, task: base.Task) -> None:
        if not self.config.immediate:
            registry.check_home(task.module_path, self.config.task_modules)

    async def aenqueue_many(self, calls: Iterable[Call]) -> list[TaskResult]:
        """See enqueue_many()."""
        return await sync_to_async(self.enqueue_many, thread_sensitive=True)(calls)

    def prepare(
        self, task: base.Task, args: Iterable[Any], kwargs: dict[str, Any]
    ) -> tuple["NewTask", TaskResult]:
        """Return the row to write and the result for the caller; nothing is written yet.

        Raise TypeError if an argument is not JSON.
        """
        from .calls import due_after, prepare

        if isinstance(task, Task) and task.delay is not None:
            task = due_after(task.delay, task, self.database)
        return prepare(self.alias, self.config, task, args, kwargs)

    def _write(self, prepared: Sequence[Prepared]) -> None:
        """Write the rows now or at the caller's commit, as each task's `enqueue_on_commit` says."""
        groups: dict[bool | str, list[Prepared]] = {}
        for call in prepared:
            own = getattr(call[0], "enqueue_on_commit", None)
            later = self.config.enqueue_on_commit if own is None else own
            groups.setdefault(later, []).append(call)
        for later, calls in groups.items():
            if later:
                using = later if isinstance(later, str) else None
                transaction.on_commit(partial(self._write_now, calls), using=using)
            else:
                self._write_now(calls)

    def _write_now(self, prepared: Sequence[Prepared]) -> None:
        from . import store, wakeup

        db = self.database
        rows = [row._replace(id=store.pk_text(db, row.id)) for _, row, _ in prepared]
        hint = None if self.config.immediate else wakeup.hint(db, self.alias)
        is_notified = store.enqueue(db, rows, hint)
        self.announce(rows, [result for _, _, result in prepared], is_notified)
        if self.config.immediate:
            from .immediate import run_now
            from .liveness.identity import make_worker_id

            for row, (_, _, result) in zip(rows, prepared, strict=True):
                run_now(self.context(make_worker_id()), row.id, result)

    def announce(
        self,
        rows: Iterable["NewTask"],
        results: Iterable[TaskResult],
        is_notified: bool = False,
    ) -> None:
        """Send task_enqueued for rows that were written, and announce them after the commit.

        With `is_notified` other processes have been notified already.
        """
        from .store import Place

        if self.config.signals:
            for result in results:
                task_enqueued.send_robust(sender=type(self), task_result=result)
        if not self.config.immediate:
            self.rows_due(
                (Place(row.queue_name, row.priority, row.id, _due_later(row)) for row in rows),
                is_notified,
            )

    def rows_due(self, places: Iterable["Place"], is_notified: bool = False) -> None:
        """Wake runners and send hints after the commit: rows are due, or will be due later."""
        from . import wakeup

        wakeup.announce(self.database, self.alias, places, is_notified)

    def context(self, worker_id: str) -> "WorkerContext":
        """Return what the attempts of a worker of this backend share."""
        from .execution.attempt import WorkerContext

        return WorkerContext(type(self), self.alias, self.database, self.config, worker_id)

    # Results

    def get_result(self, result_id: str) -> TaskResult:
        """Return the result of that id, as it stands in the database now.

        Raise TaskResultDoesNotExist if this backend has no such row, or the id is malformed.
        """
        row = self._own(result_id).first()
        if row is None:
            raise TaskResultDoesNotExist(result_id)
        return self.result_of(row)

    def result_of(self, row: "ScheduledTask") -> TaskResult:
        """Return the result that the row holds, even if its function no longer exists."""
        from .calls import result_of

        return result_of(row, self.config)

    def is_finished(self, result_id: str) -> bool:
        """Return whether the task has ended.

        Raise TaskResultDoesNotExist if there is no such row, RuntimeError if the task has not ended
        and a transaction is open.
        """
        row = self._own(result_id).only("status").first()
        if row is None:
            raise TaskResultDoesNotExist(result_id)
        if not row.is_finished and connections[self.database].in_atomic_block:
            raise RuntimeError(
                f"Task {row.pk} cannot be waited for inside a transaction: a runner sees the row "
                "only once it is committed. Wait after the atomic() block."
            )
        return row.is_finished

    async def ais_finished(self, result_id: str) -> bool:
        """See is_finished()."""
        return await sync_to_async(self.is_finished, thread_sensitive=True)(result_id)

    def _own(self, result_id: Any) -> "ScheduledTaskQuerySet":
        """Return this backend's row with that id as a queryset, empty if the id is malformed."""
        from .models import ScheduledTask

        rows = ScheduledTask.objects.using(self.database).filter(backend=self.alias)
        try:
            return rows.filter(pk=UUID(str(result_id)))
        except ValueError:
            return rows.none()

    # Manual operations

    def cancel(self, result_id: str) -> bool:
        """Cancel the task: a waiting row ends at once, a running one is asked to end.

        Return False if it has finished, or there is no such row. The row becomes FAILED, with
        TaskCancelled in its errors. A running task ends within seconds, unless it succeeds first.
        """
        from .operations import cancel

        return cancel(self.database, self._own(result_id), self.retain_failed)

    async def acancel(self, result_id: str) -> bool:
        """See cancel()."""
        return await sync_to_async(self.cancel, thread_sensitive=True)(result_id)

    def retry(self, result_id: str) -> bool:
        """Make the row READY again if it is FAILED; return whether that was so."""
        from .operations import RETRY

        return bool(RETRY.apply(self.database, self._own(result_id), self.retain_failed))

    # Policies of rows

    def retain_failed(self, row: "ScheduledTask") -> timedelta | None:
        """Return how long the row is kept if it fails, by the call, the task or the options.

        None is for ever.
        """
        try:
            stay: timedelta | None = policy_without_task(row.task_path, row.policy, "retain")
        except PolicyUnreadable:  # the row must end all the same
            stay = None
        return self.config.retain(row.task_path, TaskResultStatus.FAILED, stay)

    def may_retry_lost(self, row: "ScheduledTask") -> bool:
        """Return whether the row may start again after its worker was lost.

        Raise PolicyUnreadable if its policy does not tell.
        """
        own = policy_without_task(row.task_path, row.policy, "on_lost")
        return bool((own or self.config.on_lost) == "retry")

    # Checks

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return what is wrong with this backend's own settings; checks.py looks further."""
        wrong = options.problems(self.alias, self.options)
        found = [checks.Error(sentence, id="dbtasks.E002") for sentence in wrong]
        return distribution.problems(self.alias) + found


def _due_later(row: "NewTask") -> datetime | None:
    """Return when the row will be due; None if it is due when it is written."""
    is_due = row.run_after is None or row.run_after <= row.enqueued_at
    return None if is_due else row.run_after


# Which backends in TASKS are ours


def our_backends() -> list[DatabaseBackend]:
    """Return the DatabaseBackends in TASKS, in their order."""
    found = (backend_of(alias) for alias in task_backends.settings)
    return [backend for backend in found if backend is not None]


def backend_of(alias: str) -> DatabaseBackend | None:
    """Return the backend of that alias; None if it is not a DatabaseBackend in TASKS."""
    try:
        backend = task_backends[alias]
    except (InvalidTaskBackend, KeyError, TypeError):
        return None
    return backend if isinstance(backend, DatabaseBackend) else None


def retain_failed(row: "ScheduledTask") -> timedelta | None:
    """Return how long the row is kept if it fails; None, for ever, if its backend is gone."""
    backend = backend_of(row.backend)
    return backend.retain_failed(row) if backend else None


def check_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise RunnerError if no runner can serve it.

    Raise ImproperlyConfigured if its options are not valid.
    """
    if alias not in task_backends.settings:
        known = ", ".join(map(repr, task_backends.settings))
        choice = f"Choose one of {known}." if known else "TASKS is empty."
        raise RunnerError(f"There is no backend {alias!r} in TASKS. {choice}")
    try:
        backend = task_backends[alias]
    except (InvalidTaskBackend, KeyError, TypeError) as error:
        why = "it has no 'BACKEND'" if isinstance(error, KeyError) else error
        raise RunnerError(f"TASKS[{alias!r}] is not valid: {why}.") from error
    if not isinstance(backend, DatabaseBackend):
        raise RunnerError(
            f"TASKS[{alias!r}] uses {type(backend).__name__}; a runner serves DatabaseBackend only."
        )
    if backend.config.immediate:
        raise RunnerError(f"TASKS[{alias!r}] is immediate: its tasks run inside enqueue().")
    return backend


def home_of_our_tasks() -> dict[str, Any]:
    """Return backend and queue for tasks of dbtasks: our first backend, and a queue it allows."""
    for backend in our_backends():
        allowed = sorted(backend.queues) or [DEFAULT_TASK_QUEUE_NAME]
        is_usual = DEFAULT_TASK_QUEUE_NAME in allowed
        queue_name = DEFAULT_TASK_QUEUE_NAME if is_usual else allowed[0]
        return {"backend": backend.alias, "queue_name": queue_name}
    return {}
