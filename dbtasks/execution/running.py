"""Calls the task of an attempt, in a thread or on an event loop.

Owns loading the row's arguments, calling the task's function, the signals around it, and the
stand-in of an attempt that does not end. Never decides when an attempt must end.
"""

import sys
from contextvars import copy_context
from traceback import format_stack
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.tasks import base
from django.tasks.signals import task_finished, task_started

from ..base import payload
from ..base.context import TaskContext, current_queue
from ..base.result import FAILED
from ..db.connections import drop
from ..db.full_servers import SyncThread
from ..exceptions import TaskInterrupted, TaskReleased
from ..models import instant
from ..store import Outcome
from . import outcomes
from .announcing import aannounce, announce
from .attempt import Attempt


def run(attempt: Attempt) -> Outcome:
    """Run the task in this thread, coroutines included; return its outcome.

    Changes of context variables, such as language and time zone, end with the task.
    """
    try:
        return copy_context().run(_run, attempt)
    finally:
        attempt.drop_result()


def _run(attempt: Attempt) -> Outcome:
    try:
        task, args, kwargs = _prepare(attempt)
        if isinstance(attempt.asked_for, TaskReleased):
            return outcomes.not_started(attempt.context.db, attempt.claim)
        announce(attempt, task_started)
        _raise_if_ended(attempt)
        value, text = _dump(attempt, _call(attempt, task, args, kwargs))
    except BaseException as error:  # sys.exit() in a task ends the task, not the thread
        outcome = attempt.failed(error)
        if outcome.status == FAILED and not attempt.interrupted:
            _announce_end(attempt)
        return outcome
    outcome = attempt.succeeded(value, text)
    _announce_end(attempt)
    return outcome


async def arun(attempt: Attempt) -> Outcome:
    """Run the task's coroutine on this event loop; return its outcome.

    Thread-sensitive code that it calls, such as the ORM, runs in a thread of its own, whose
    connections are closed at the end. Must run as an asyncio task of its own.
    """
    async with ThreadSensitiveContext() as context:
        SyncToAsync.context_to_thread_executor[context] = thread = SyncThread()
        attempt.sync_thread = thread
        try:
            return await _arun(attempt)
        finally:
            attempt.drop_result()
            if thread.has_started:
                await sync_to_async(connections.close_all)()


async def _arun(attempt: Attempt) -> Outcome:
    try:
        task, args, kwargs = _prepare(attempt)
        if isinstance(attempt.asked_for, TaskReleased):
            return outcomes.not_started(attempt.context.db, attempt.claim)
        await aannounce(attempt, task_started)
        _raise_if_ended(attempt)
        value, text = _dump(attempt, await _inside(attempt, task, args, kwargs))
    except BaseException as error:
        outcome = attempt.failed(error)
        if outcome.status == FAILED and attempt.is_open:
            await aannounce(attempt, task_finished)
        return outcome
    outcome = attempt.succeeded(value, text)
    if attempt.is_open:
        await aannounce(attempt, task_finished)
    return outcome


def _prepare(attempt: Attempt) -> tuple[base.Task, list[Any], dict[str, Any]]:
    """Return the task and its arguments, the context first if the task takes it."""
    if attempt.thread is None:
        attempt.begin()
    current_queue.set(attempt.claim.queue_name)
    task = attempt.find()
    if task is None:
        raise attempt.error or LookupError(attempt.claim.task_path)
    args, kwargs = payload.load(attempt.claim.args), payload.load(attempt.claim.kwargs)
    if task.takes_context:
        args.insert(0, _task_context(attempt))
    return task, args, kwargs


def _task_context(attempt: Attempt) -> TaskContext:
    tick = attempt.claim.tick
    return TaskContext(
        task_result=attempt.live_result(),
        tick=None if tick is None else instant(tick),
        _asked=attempt.asked,
    )


def _call(attempt: Attempt, task: base.Task, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call the task's function, which may be interrupted meanwhile."""
    attempt.enter()
    try:
        return attempt.call.run(task.call, args, kwargs)
    finally:
        attempt.has_returned = True
        if attempt.call.was_interrupted:
            # The interrupt may have come in the middle of a statement or a commit, which leaves the
            # connections in an unknown state.
            for connection in connections.all(initialized_only=True):
                if connection.connection is not None or connection.in_atomic_block:
                    drop(connection)


async def _inside(attempt: Attempt, task: base.Task, args: list[Any], kwargs: Any) -> Any:
    """Await the task's coroutine, which may be cancelled meanwhile."""
    attempt.enter()
    attempt.is_inside = True
    try:
        value = await task.func(*args, **kwargs)
    finally:
        attempt.is_inside, attempt.has_returned = False, True
    if attempt.is_interrupted:
        # It has swallowed the cancellation, so what it has done is not complete.
        raise TaskInterrupted
    return value


def _raise_if_ended(attempt: Attempt) -> None:
    """Raise the reason if the task was cancelled, or took too long, before it began.

    If the runner stops, the task begins all the same: task_started was sent.
    """
    reason = attempt.asked_for
    if reason is not None and not isinstance(reason, TaskReleased):
        raise reason


def _dump(attempt: Attempt, value: Any) -> tuple[Any, str | None]:
    if value is None:
        return None, None
    return payload.dump(value, "The return value", attempt.context.options.max_payload)


def _announce_end(attempt: Attempt) -> None:
    """Send task_finished, unless the attempt was abandoned: then its stand-in sends it."""
    if attempt.is_open:
        announce(attempt, task_finished)


def abandon(attempt: Attempt) -> tuple[Attempt, Outcome]:
    """Return a stand-in for an attempt that does not end when asked, and its outcome.

    The attempt itself is left alone, because it may go on at any moment. The error says where it
    hangs. Sends task_finished, whose receivers may block this thread.
    """
    stand_in = attempt.stand_in()
    frame = sys._current_frames().get(attempt.thread or 0)
    where = "".join(format_stack(frame)) if frame else "  an unknown place\n"
    try:
        raise (stand_in.asked_for or attempt.overrun()) from TaskInterrupted(
            f"It did not end. It was at:\n{where}"
        )
    except Exception as error:
        outcome = stand_in.failed(error)
        if outcome.status == FAILED:
            announce(stand_in, task_finished)
    return stand_in, outcome
