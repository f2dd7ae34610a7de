"""One attempt: a start of a claimed row, until its outcome is known.

Owns the outcome of what the task returned or raised, and the result that the task and its signals
see. Never calls the task, and never writes to the database.
"""

import logging
import time
from datetime import timedelta
from typing import Any

from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished

from .. import store
from ..base import payload
from ..base.result import FAILED, SUCCESSFUL, make_errors, with_error
from ..exceptions import Snooze, TaskReleased
from ..store import Claim, Outcome
from . import outcomes, unknown
from .announcing import is_unheard
from .failures import cut_frames, delay_before_retry, describe_error, snooze_delay, verdict
from .live_result import FIELDS, live_result
from .start import Start, WorkerContext

__all__ = ["Attempt", "WorkerContext"]

logger = logging.getLogger("dbtasks.runner")

# A task that was released this often probably takes longer than its runners are up.
WARN_FROM = 3
# The longest delay that a task can ask for, in seconds: 100 years. The latest date that every
# database stores is in the year 9999.
LONGEST_SNOOZE = 3_155_760_000.0


class Attempt(Start):
    """One start of one claimed row, and its outcome. Used by one thread, once."""

    __slots__ = ()

    def stand_in(self) -> "Attempt":
        """Return another attempt of the same start, to be settled if this one does not end."""
        other = Attempt(self.context, self.claim)
        other.task, other.started, other.is_entered = self.task, self.started, self.is_entered
        other._asked = self._asked or self.overrun()
        return other

    # Outcomes

    def succeeded(self, value: Any, text: str | None) -> Outcome:
        """Return the outcome of a task that returned `value`, whose JSON is `text`."""
        claim = self.claim
        outcome = self._ended(SUCCESSFUL, claim.errors, claim.failures, text)
        if self.context.options.signals:
            self._end_result(TaskResultStatus.SUCCESSFUL, outcome, _return_value=value)
        return outcome

    def failed(self, error: BaseException) -> Outcome:
        """Return the outcome of a task that raised `error`, whatever it is. This must not fail."""
        if self.task is None and (outcome := unknown.release(self, error)) is not None:
            return outcome
        error = verdict(error, self._asked, self.is_interrupted or self.call.was_interrupted)
        if isinstance(error, TaskReleased) and self._asked is not None:
            return self.release()
        self.error = error
        cut_frames(error)
        claim = self.claim
        if isinstance(error, Snooze) and (delay := snooze_delay(error)) is not None:
            return self._again(delay, claim.errors, claim.failures)
        return self._failed(error)

    def _failed(self, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that has failed with that error."""
        claim = self.claim
        errors = with_error(outcomes.listed(claim.errors), describe_error(error))
        failures = claim.failures + 1
        delay = delay_before_retry(self.task, error, failures, self.policy, self.live_result)
        if delay is not None:
            where = (claim.task_path, claim.id, failures, delay)
            logger.warning("%s %s failed (failure %d), retry in %.1f s", *where, exc_info=error)
            return self._again(delay, payload.text(errors), failures)
        outcome = self._ended(FAILED, payload.text(errors), failures)
        if self.context.options.signals:
            self._end_result(TaskResultStatus.FAILED, outcome, errors=make_errors(errors))
        return outcome

    def _ended(
        self, status: str, errors: str | None, failures: int, return_value: str | None = None
    ) -> Outcome:
        return outcomes.ended(
            self.context.db,
            self.claim,
            self.context.worker_id,
            status,
            began=self.at(self.started),
            at=self.at(time.monotonic()),
            stay=self._retention(status),
            errors=errors,
            failures=failures,
            return_value=return_value,
        )

    def _again(self, delay: float, errors: str | None, failures: int) -> Outcome:
        """Return the outcome of an attempt after which the task is due in `delay` seconds."""
        delay = min(max(0.0, delay), LONGEST_SNOOZE)
        return outcomes.unfinished(
            self.context.db,
            self.claim,
            self.context.worker_id,
            began=self.at(self.started),
            errors=errors,
            failures=failures,
            run_after=self.at(time.monotonic()) + timedelta(seconds=delay),
        )

    def release(self) -> Outcome:
        """Return the outcome of an attempt that is released, because its runner stops.

        A task that has not been called is due again, as if it had not been claimed. One that was
        called has failed if on_lost is "fail", or if it was released too often.
        """
        db, claim, options = self.context.db, self.claim, self.context.options
        if not self.is_entered:
            return outcomes.not_started(db, claim)
        end: dict[str, Any] = {
            "began": self.at(self.started),
            "at": self.at(time.monotonic()),
            "stay": self._retention(FAILED),
        }
        if self.policy("on_lost") == "retry":
            limit = options.max_releases
            outcome = outcomes.released(db, claim, self.context.worker_id, limit=limit, **end)
            _warn_if_frequent(claim, outcome.releases)
        else:
            outcome = outcomes.stopped(db, claim, self.context.worker_id, **end)
        if outcome.status == FAILED and options.signals:
            errors = make_errors(outcomes.listed(outcome.errors))
            self._end_result(TaskResultStatus.FAILED, outcome, errors=errors)
        return outcome

    def cancelled(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a row that would be READY again, but was cancelled meanwhile."""
        run_after = store.to_datetime(self.context.db, self.claim.run_after)
        at, stay = self.at(time.monotonic()), self._retention(FAILED)
        return outcomes.cancelled(outcome, at, stay, run_after)

    def broken(self, error: BaseException) -> Outcome:
        """Return a FAILED outcome of plain values, so that making it cannot fail. Log the error."""
        logger.error("%s could not be run", self.claim.task_path, exc_info=error)
        self.error = error
        at = self.at(time.monotonic())
        return outcomes.broken(self.claim, self.context.worker_id, at, describe_error(error))

    def _retention(self, status: str) -> timedelta | None:
        task = self.task
        own: timedelta | None = (
            self._stored("retain") if task is None else getattr(task, "retain", None)
        )
        return self.context.options.retain(self.claim.task_path, status, own)

    # Its result

    def live_result(self) -> Any:
        """Return the live result, one object for signals and the context."""
        if self.result is None:
            self.result = live_result(self)
        return self.result

    def describe(self) -> dict[str, Any]:
        """Return every field of the result as the attempt starts."""
        return {name: make(self) for name, make in FIELDS.items()}

    def _end_result(self, status: TaskResultStatus, outcome: Outcome, **values: Any) -> None:
        """Set the final fields of the live result, if somebody has it or will receive it."""
        if self.result is None and is_unheard(self, task_finished):
            return
        result = self.live_result()
        for name, value in {"status": status, "finished_at": outcome.finished_at, **values}.items():
            object.__setattr__(result, name, value)

    def drop_result(self) -> None:
        """Forget the live result. Receivers may keep it."""
        # A result refers to its attempt. If the attempt referred to the result as well, both would
        # wait for the garbage collector: measured 8 MiB between 10,000 and 100,000 tasks.
        self.result = None


def _warn_if_frequent(claim: Claim, releases: int) -> None:
    """Log a warning if the row has been released so often that it may never end."""
    if releases >= WARN_FROM:
        logger.warning(
            "%s %s was released %d times: it runs longer than its runners do. "
            "Give them a longer --grace, or divide the task.",
            *(claim.task_path, claim.id, releases),
        )
