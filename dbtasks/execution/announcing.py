"""The signals that are sent when a task starts and ends.

Owns whether a signal is worth sending: a result that nobody receives is never built. Never lets a
receiver change the outcome of the task.
"""

import logging
from typing import TYPE_CHECKING

from django.dispatch import Signal
from django.tasks.signals import log_task_finished, log_task_started

if TYPE_CHECKING:
    from .attempt import Attempt

logger = logging.getLogger("dbtasks.runner")
django_logger = logging.getLogger("django.tasks")
# Django's own receivers, which only write a log line.
_LOG_RECEIVERS = {id(log_task_started), id(log_task_finished)}


def is_unheard(attempt: "Attempt", signal: Signal) -> bool:
    """Return whether sending the signal would do nothing, not even write a log line."""
    level = logging.INFO if attempt.error is None else logging.ERROR
    return not django_logger.isEnabledFor(level) and _only_logs(signal)


def announce(attempt: "Attempt", signal: Signal) -> None:
    """Send the signal in this thread. Django logs a receiver that raises."""
    if attempt.context.options.signals and not is_unheard(attempt, signal):
        try:
            signal.send_robust(sender=attempt.context.sender, task_result=attempt.live_result())
        except (SystemExit, GeneratorExit):  # Django does not catch these
            logger.exception("A receiver of a task's signal raised")


async def aannounce(attempt: "Attempt", signal: Signal) -> None:
    """Send the signal on this event loop; sync receivers run in the attempt's own thread."""
    if not attempt.context.options.signals or is_unheard(attempt, signal):
        return
    if _only_logs(signal):
        # Sending would start a thread for each coroutine, only to write a log line.
        announce(attempt, signal)
        return
    try:
        result = attempt.live_result()
        await signal.asend_robust(sender=attempt.context.sender, task_result=result)
    except (SystemExit, GeneratorExit):
        logger.exception("A receiver of a task's signal raised")


def _only_logs(signal: Signal) -> bool:
    """Return whether all receivers are Django's own, which only log."""
    return all(receiver[0][0] in _LOG_RECEIVERS for receiver in signal.receivers)
