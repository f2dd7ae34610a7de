"""A Lambda function that runs tasks.

Owns what becomes of an event, and how much of the function's time is used. Never trusts a message
with more than the id of a row, and never logs what it says.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any

from django.db import Error, close_old_connections
from django.tasks import DEFAULT_TASK_BACKEND_ALIAS

from ...door import Door
from ...exceptions import RunnerError
from ...hinted import run_hinted
from ...push import Hint
from ...sweeping import Swept, run_due, sweep_through
from ...wakeup import push_of, tell
from .events import Message, is_batch, is_schedule, read

logger = logging.getLogger("dbtasks.aws")

# Seconds before the function's end. Nothing starts in the last ones; a sweep and a drain start
# nothing in more of them, if there are more, because the task that they start last takes time too.
MARGIN = 10.0
TASK_MARGIN = 30.0
# Seconds that an event may take without a context, as when a test or a shell calls the handler.
USUAL = 300.0
# Seconds between two sweeps if the event does not say, and the most that it may say: a week.
INTERVAL = 60.0
LONGEST_INTERVAL = 604_800


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Run what an event asks for, as a Lambda function.

    For messages of SQS, return ``batchItemFailures``: those that SQS is to deliver again, because
    the time was over or the database was away. A task that fails is not among them. For a schedule,
    sweep one backend, the event's ``backend`` or else ``default``, and return the counts. The
    event's ``interval`` is the number of seconds between two sweeps, or else 60. Raise TypeError
    for other events, ValueError for an interval that is not valid. Runs tasks in the caller's
    thread.
    """
    if not is_batch(event) and not is_schedule(event):
        raise TypeError(
            "This function takes messages of SQS, schedules of EventBridge, and "
            "{'dbtasks': 'sweep'}. Call it only if dbtasks.contrib.aws.is_ours(event) is True."
        )
    clock = Clock(context)
    # No request begins or ends here, and the connections of a function that was frozen are dead.
    close_old_connections()
    try:
        return _run_batch(event["Records"], clock) if is_batch(event) else _sweep(event, clock)
    finally:
        close_old_connections()


class Clock:
    """The time that is left of an event."""

    def __init__(self, context: Any) -> None:
        left = getattr(context, "get_remaining_time_in_millis", None)
        self._end = time.monotonic() + USUAL
        self._ask = left if callable(left) else None

    @property
    def left(self) -> float:
        """The seconds until the function is killed."""
        return self._ask() / 1000 if self._ask else self._end - time.monotonic()

    @property
    def budget(self) -> float:
        """The seconds in which tasks may start, if several are run one after the other."""
        left = self.left
        return max(left - TASK_MARGIN, left / 2)

    def door(self) -> Door:
        """Return what the core may do. One event comes at a time, so each row runs alone."""
        return Door(
            deadline=time.monotonic() + self.left,
            interrupts=True,
            fresh_context=True,
            has_ctrl_c=False,
        )


def _run_batch(records: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """Run the rows one after the other; return the messages that SQS is to deliver again."""
    for number, record in enumerate(records):
        if clock.left < MARGIN:
            logger.warning(
                "%d of %d messages are left to another delivery: %.1f s of the function's time "
                "are left, and nothing starts in the last %d",
                *(len(records) - number, len(records), clock.left, MARGIN),
            )
            return _failures(records[number:])
        try:
            _run(record, clock)
        except Error as error:
            # The others would wait for the database as long as this one has.
            logger.error("The database failed, SQS will deliver again: %s", error)
            return _failures(records[number:])
    return _failures([])


def _failures(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in records]}


def _run(record: dict[str, Any], clock: Clock) -> None:
    """Run what one message names. Let errors of the database through; log what else is wrong."""
    message = read(record.get("body"))
    if message is None:
        logger.error("Message %s is none of dbtasks; it is dropped", record.get("messageId"))
        return
    try:
        _run_rows(message, clock)
    except RunnerError as error:
        logger.error("Message %s is dropped: %s", record.get("messageId"), error)


def _run_rows(message: Message, clock: Clock) -> None:
    """Run the row, or what is due in the queue; send the hint on if it has not served its end."""
    door, backend, queue_name = clock.door(), message.backend, message.queue_name
    if message.id is None:
        swept = run_due(door, backend, max_seconds=clock.budget, queue_name=queue_name)
        logger.info("%d tasks of queue %r have run", swept.ran, queue_name)
        if swept.ran and swept.is_due_left:
            _send_on(Hint(None, backend, queue_name))
        return
    done = run_hinted(door, backend, message.id)
    logger.info("%s %s", done.id, "has run" if done.ran else f"did not run: {done.why}")
    if done.why == "not due":
        _send_on(Hint(done.id, backend, queue_name, done.attempt, done.next_due))


def _send_on(hint: Hint) -> None:
    if (push := push_of(hint.backend)) is not None:
        tell(push, [hint])


def _sweep(event: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Sweep one backend; return the counts."""
    backend = event.get("backend", DEFAULT_TASK_BACKEND_ALIAS)
    interval = event.get("interval", INTERVAL)
    is_number = isinstance(interval, int | float) and not isinstance(interval, bool)
    if not (is_number and 0 < interval <= LONGEST_INTERVAL):
        raise ValueError(
            f"'interval' must be a number of seconds above 0, {LONGEST_INTERVAL:,} at most, not "
            f"{interval!r}."
        )
    swept = sweep_through(clock.door(), backend, max_seconds=clock.budget, interval=interval)
    return _counts(swept)


def _counts(swept: Swept) -> dict[str, Any]:
    """Return what Lambda can write as JSON, and nothing of what tasks returned or raised."""
    names = ("ran", "succeeded", "failed", "again", "rescued", "fired", "hinted", "purged")
    return {name: getattr(swept, name) for name in names} | {
        "due_left": swept.is_due_left,
        "next_due": swept.next_due and swept.next_due.isoformat(),
        "seconds": round(swept.seconds, 3),
    }
