"""Hints: which push a backend has, and whether this process sends any.

Owns tell(), through which every hint goes. Never raises, and never reads or writes the database.
"""

import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import batched
from typing import Any

from django.conf import settings
from django.utils import timezone

from ..push import Hint, Push
from .guard import Guard, guard_of, in_words

# A service that can hold a hint for this long gets hints for rows that are due later still.
SENT_ON = timedelta(days=1)


def push_of(backend: str) -> Push | None:
    """Return the push of that backend by TASKS; None if it has none or is immediate."""
    backends: Any = settings.TASKS
    options = backends.get(backend, {}).get("OPTIONS", {})
    push = options.get("push")
    return push if isinstance(push, Push) and not options.get("immediate") else None


def tell(push: Push, hints: Sequence[Hint]) -> int:
    """Send the hints, all of one backend, if this process sends any; return how many were sent.

    A hint for a row that is due later than the service can hold it is sent for the latest time that
    it can, if that is a day or more, else not. Returns in less than three seconds. Raises nothing:
    what is not sent is logged, and a sweep finds the rows. Call it after the commit.
    """
    if not hints:
        return 0
    guard = guard_of(hints[0].backend)
    if not is_sending(push, guard):
        return 0
    sendable = _sendable(push, hints)
    return guard.send(push, list(batched(sendable, push.batch))) if sendable else 0


def is_sending(push: Push, guard: Guard) -> bool:
    """Return whether this process sends hints: never in a test, else where `push` is at home.

    The environment variable DBTASKS_PUSH, "on" or "off", wins over is_at_home().
    """
    if is_test_environment():
        return False
    wanted = os.environ.get("DBTASKS_PUSH", "").strip().lower()
    if wanted:
        if wanted not in ("on", "off"):
            guard.explain(logging.WARNING, "DBTASKS_PUSH must be 'on' or 'off'.")
        return wanted == "on"
    try:
        is_at_home = push.is_at_home()
    except Exception as error:  # whatever a project's own class raises
        guard.explain(logging.WARNING, f"is_at_home() raised {in_words(error)}.")
        return False
    if not is_at_home:
        guard.explain(
            logging.INFO,
            "this process does not run where they are meant to be sent. DBTASKS_PUSH=on sends "
            "them all the same.",
        )
    return is_at_home


def is_test_environment() -> bool:
    """Return whether Django's setup_test_environment() is in force."""
    # Importing the module would load Django's test client in every process.
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")


def _sendable(push: Push, hints: Sequence[Hint]) -> list[Hint]:
    """Return the hints as the service can hold them, without those that it cannot hold."""
    now, found = timezone.now(), []
    for hint in hints:
        at = hint.run_after
        if at is not None and timezone.is_naive(at):
            at = timezone.make_aware(at, timezone.get_default_timezone())
        if at is None or at.timestamp() <= now.timestamp():
            found.append(hint._replace(run_after=None))
        elif push.longest is None or at - now <= push.longest:
            found.append(hint._replace(run_after=at))
        elif push.longest >= SENT_ON:
            found.append(hint._replace(run_after=now + push.longest))
    return found
