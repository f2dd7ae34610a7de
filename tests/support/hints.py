"""Pushes for tests, and what lets a test send hints."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.conf import settings
from django.test import override_settings

from dbtasks.push import Hint, Push
from dbtasks.wakeup import guard, hints


@contextmanager
def sending() -> Iterator[None]:
    """Send hints inside the block, as if no tests were running, with no memory of failures."""
    forget_senders()
    try:
        with (
            # Threads of senders that were forgotten do not stay.
            mock.patch.object(guard, "IDLE", 0.1),
            mock.patch.object(hints, "is_test_environment", return_value=False),
            mock.patch.dict(os.environ, DBTASKS_PUSH="on"),
        ):
            yield
    finally:
        forget_senders()


def forget_senders() -> None:
    """Forget failures and what was logged."""
    guard._senders.clear()


class Recorder(Push):
    """Keeps each hint in `hints`, in the order of sending, and the size of each call in `calls`."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)
        self.hints: list[Hint] = []
        self.calls: list[int] = []
        self._lock = threading.Lock()

    def send(self, hints: Sequence[Hint]) -> None:
        with self._lock:
            self.hints += hints
            self.calls.append(len(hints))

    def taken(self) -> list[Hint]:
        """Return the hints so far, and forget them."""
        with self._lock:
            found, self.hints, self.calls = self.hints, [], []
        return found


def with_push(push: Push | None, alias: str = "default", **options: Any) -> Any:
    """Return override_settings with that push, and these options, in one backend."""
    backend = settings.TASKS[alias]
    changed = backend | {"OPTIONS": backend.get("OPTIONS", {}) | {"push": push} | options}
    return override_settings(TASKS=settings.TASKS | {alias: changed})
