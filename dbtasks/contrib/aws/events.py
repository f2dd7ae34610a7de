"""Events that a Lambda function gets, and the bodies of our messages.

Owns how a hint is written and read. Never acts on one, and needs neither Django nor boto3.
"""

import json
from typing import Any, NamedTuple
from uuid import UUID

# The version of our bodies. A message of another version is none of ours.
VERSION = 1
SCHEDULES = ("aws.events", "aws.scheduler")


class Message(NamedTuple):
    """A hint as it arrives: a row to run; with `id` None, whatever is due in that queue."""

    backend: str
    id: str | None
    queue_name: str


def body_of(message: Message) -> str:
    """Return the body that says this."""
    said = {"backend": message.backend, "id": message.id, "queue": message.queue_name}
    return json.dumps({"dbtasks": VERSION} | said)


def read(body: Any) -> Message | None:
    """Return what a body says; None if it is none of ours."""
    try:
        found = json.loads(body)
    # RecursionError: thousands of brackets.
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_version(found.get("dbtasks")):
        return None
    backend, id, queue_name = found.get("backend"), found.get("id"), found.get("queue")
    if not isinstance(backend, str) or not isinstance(queue_name, str):
        return None
    if id is None:
        return Message(backend, None, queue_name)
    try:
        return Message(backend, str(UUID(id)), queue_name)
    # AttributeError: not text.
    except (AttributeError, TypeError, ValueError):
        return None


def _is_version(value: Any) -> bool:
    return value == VERSION and not isinstance(value, bool)


def is_batch(event: Any) -> bool:
    """Return whether the event brings messages of SQS, whoever wrote them."""
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list) or not records:
        return False
    return all(isinstance(r, dict) and r.get("eventSource") == "aws:sqs" for r in records)


def is_schedule(event: Any) -> bool:
    """Return whether the event asks for a sweep: a schedule of EventBridge, or our own words."""
    if not isinstance(event, dict):
        return False
    return event.get("dbtasks") == "sweep" or event.get("source") in SCHEDULES


def is_ours(event: Any) -> bool:
    """Return whether the event is for `handler`: a schedule, or messages of SQS with one of ours.

    For functions that get other events too. The batch of another application's queue is not ours.
    """
    if is_batch(event):
        return any(read(record.get("body")) for record in event["Records"])
    return is_schedule(event)
