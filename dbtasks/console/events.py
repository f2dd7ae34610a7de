"""A settled attempt, as a line of text and as the fields of a JSON object.

Owns the names of events and fields, and their texts. Never decides whether a line is shown.
"""

from typing import Any

from .. import store
from ..base import payload
from ..base.result import FAILED, READY, SUCCESSFUL, error_message
from ..execution.attempt import Attempt
from ..execution.settling import Ended
from ..store import Outcome
from .logs import now_text
from .terminal import humanize_seconds, printable


def describe(ended: Ended) -> dict[str, Any]:
    """Return the fields of a settled attempt: durations in seconds, times in UTC."""
    attempt, outcome = ended
    claim, context = attempt.claim, attempt.context
    began = outcome.last_attempted_at
    due = store.to_datetime(context.db, claim.run_after) or store.to_datetime(
        context.db, claim.enqueued_at
    )
    error, message = _failure(outcome)
    return {
        "event": _event(attempt, outcome),
        "time": now_text(),
        "task_id": attempt.describe()["id"],
        "task": claim.task_path,
        "queue": claim.queue_name,
        "backend": context.alias,
        "worker_id": context.worker_id,
        "attempt": outcome.attempt,
        "status": outcome.status,
        "wait_s": began and due and round((began - due).total_seconds(), 6),
        "duration_s": outcome.finished_at
        and round((outcome.finished_at - began).total_seconds(), 6),
        "exception": error,
        "message": message,
    }


_EVENTS = {SUCCESSFUL: "task.finished", FAILED: "task.failed", READY: "task.released"}
_MARKS = {
    "task.finished": "ok",
    "task.failed": "FAIL",
    "task.released": "back",
    "task.retried": "next",
}


def _event(attempt: Attempt, outcome: Outcome) -> str:
    """Return the name of the event. A READY row was released, or is retried after an error."""
    is_retry = outcome.status == READY and attempt.error is not None
    return "task.retried" if is_retry else _EVENTS[outcome.status]


def _failure(outcome: Outcome) -> tuple[str | None, str | None]:
    """Return the class and the message of the outcome's error; None twice if it has none."""
    if outcome.status == SUCCESSFUL or not outcome.errors:
        return None, None
    path, text = payload.load(outcome.errors)[-1]
    return path.rpartition(".")[2], error_message(path, text)


def traceback_of(outcome: Outcome) -> str:
    """Return the traceback of the outcome's last error, indented; "" if it has none."""
    errors = payload.load(outcome.errors) if outcome.errors else []
    lines = str(errors[-1][1]).splitlines() if errors else []
    return "\n".join(f"  {printable(line, 2000)}" for line in lines)


def as_line(fields: dict[str, Any]) -> str:
    """Return the fields as one line of text."""
    text = (
        f"{_MARKS[fields['event']]:4} {fields['task_id'][-12:]} {printable(fields['task'], 120)}  "
        f"queue={printable(fields['queue'])} attempt={fields['attempt']} {fields['status']} "
        f"waited {humanize_seconds(fields['wait_s'])}"
    )
    if fields["duration_s"] is not None:
        text += f", took {humanize_seconds(fields['duration_s'])}"
    if fields["exception"]:
        message = f": {printable(fields['message'])}" if fields["message"] else ""
        text += f"  {printable(fields['exception'])}{message}"
    return text
