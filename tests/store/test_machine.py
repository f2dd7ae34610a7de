"""Any sequence of transitions leaves the rows as a model of plain dicts says.

TEST_MACHINE_EXAMPLES says how many sequences are tried, 100 unless set.
"""

import json
import os
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.test import TransactionTestCase
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dbtasks import store
from dbtasks.base.queues import AllBut
from dbtasks.execution.outcomes import not_started
from dbtasks.models import ScheduledTask, Worker
from dbtasks.rescue import MAX_LOST, rescue
from dbtasks.store import workers

from ..support.rows import DB, KeepsADay, ids, make_task, outcome, vendor

EXAMPLES = int(os.environ.get("TEST_MACHINE_EXAMPLES", "100"))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FINISHED = ("SUCCESSFUL", "FAILED")

WORKERS = st.sampled_from(["w0", "w1", "w2"])
SOME = st.lists(st.integers(0, 9), min_size=1, max_size=4)
NEW: dict[str, Any] = {
    "status": "READY",
    "hold": "",
    "fence": 0,
    "attempt": 0,
    "failures": 0,
    "lost": 0,
    "releases": 0,
    "worker_id": None,
    "worker_ids": 0,
    "errors": 0,
    # What the purges go by: whether the retention is over, and whether it ended long ago.
    "expired": False,
    "old": False,
}


class Machine(RuleBasedStateMachine):
    """Rows, workers that may be lost, and claims that may be stale."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[UUID, dict[str, Any]] = {}
        self.come: set[UUID] = set()
        self.order: dict[UUID, tuple[int, str]] = {}
        self.queue: dict[UUID, str] = {}
        self.claims: list[tuple[UUID, store.Claim]] = []
        # Name to beat, None for the lost; the names that rules use, to the one registered last.
        self.workers: dict[str, int | None] = {}
        self.names: dict[str, str] = {}

    def teardown(self) -> None:
        for model in (ScheduledTask, Worker):
            model.objects.all()._raw_delete(DB)

    @initialize()
    def register_all(self) -> None:
        for slot in ("w0", "w1", "w2"):
            self._join(slot)

    def _join(self, slot: str) -> None:
        name = f"{slot}-{len(self.workers)}"
        workers.register(DB, name, "default", "", 1, 1)
        self.workers[name], self.names[slot] = 0, name

    def _some(self, numbers: list[int]) -> list[UUID]:
        known = list(self.rows)
        return list({known[n % len(known)]: None for n in numbers}) if known else []

    def _set(self, found: list[UUID], **values: Any) -> int:
        for id in found:
            self.rows[id] |= values
        return len(found)

    def _in(self, *statuses: str, among: Any = None, **values: Any) -> list[UUID]:
        """Return the rows with one of those statuses and those values."""
        return [
            id
            for id in (self.rows if among is None else among)
            if self.rows[id]["status"] in statuses
            and all(self.rows[id][name] == value for name, value in values.items())
        ]

    # Rows

    @rule(queue=st.sampled_from("ab"), priority=st.integers(0, 2), later=st.booleans())
    def enqueue(self, queue: str, priority: int, later: bool) -> None:
        after = store.now(DB) + HOUR if later else None
        id = make_task(queue_name=queue, priority=priority, run_after=after)
        self.rows[id] = NEW | {"hold": "scheduled" if later else ""}
        self.order[id], self.queue[id] = (-priority, id.hex), queue

    @rule()
    def time_passes(self) -> None:
        """What waits comes due, for want of an hour."""
        held = ScheduledTask.objects.scheduled()
        held.update(run_after=store.now(DB) - HOUR)
        self.come = set(self._in("READY", hold="scheduled"))

    @rule()
    def promote(self) -> None:
        come = [id for id in self._in("READY", hold="scheduled") if id in self.come]
        assert len(store.promote(DB, "default")) == self._set(come, hold="")

    @rule(
        slot=WORKERS,
        limit=st.integers(1, 3),
        queues=st.sampled_from([None, ["a"], ["b"], ["a", "b"], ["none"], AllBut(["a"])]),
        goes_on=st.booleans(),
    )
    def claim(self, slot: str, limit: int, queues: Any, goes_on: bool) -> None:
        name = self.names[slot]
        id, beyond = self.claims[-1] if goes_on and self.claims else (None, None)
        claims = store.claim(DB, "default", name, limit, queues, registered=True, beyond=beyond)
        names = {"a", "b"} - queues if isinstance(queues, AllBut) else set(queues or "ab")
        due = [id for id in self._in("READY", hold="") if self.queue[id] in names]
        if beyond and vendor() != "sqlite" and len(queues or "1") == 1:
            last = self.order[id]
            due = [id for id in due if self.order[id][0] != last[0] or self.order[id] > last]
        expected = sorted(due, key=self.order.__getitem__)[:limit]
        if self.workers[name] is None:
            expected = []
        assert ids(claims) == expected
        for id, claim in zip(expected, claims, strict=True):
            row = self.rows[id]
            row |= {"status": "RUNNING", "worker_id": name}
            row |= {"fence": row["fence"] + 1, "attempt": row["attempt"] + 1}
            assert (claim.fence, claim.attempt) == (row["fence"], row["attempt"])
            self.claims.append((id, claim))

    @precondition(lambda self: self.claims)
    @rule(
        numbers=SOME,
        kind=st.sampled_from(["SUCCESSFUL", "FAILED", "again", "later", "released"]),
        expired=st.booleans(),
        old=st.booleans(),
        twice=st.booleans(),
    )
    def settle(self, numbers: list[int], kind: str, expired: bool, old: bool, twice: bool) -> None:
        """Settle claims of any age, so that many are stale; twice if the answer was lost."""
        chosen = {self.claims[-1 - n % len(self.claims)][0]: n for n in numbers}
        claims = [self.claims[-1 - n % len(self.claims)] for n in chosen.values()]
        outcomes = [self._outcome(claim, kind, expired, old) for _, claim in claims]
        stood = [
            (id, claim)
            for id, claim in claims
            if id in self._in("RUNNING", among=self.rows.keys() & {id}, fence=claim.fence)
        ]
        written = store.settle(DB, outcomes)
        assert {claim.id for _, claim in stood} <= written
        for id, claim in stood:
            self._settled(id, claim, kind, expired, old)
        if twice:
            store.settle(DB, outcomes)

    def _outcome(self, claim: store.Claim, kind: str, expired: bool, old: bool) -> store.Outcome:
        if kind == "released":
            return not_started(DB, claim)
        errors = json.loads(claim.errors or "[]") + [["a.B", ""]] * (kind != "SUCCESSFUL")
        values: dict[str, Any] = {
            "failures": claim.failures + (kind != "SUCCESSFUL"),
            "lost": claim.lost,
            "releases": claim.releases + 1,
            "errors": json.dumps(errors),
            "worker_ids": json.dumps([*json.loads(claim.worker_ids or "[]"), "w"]),
        }
        if kind in FINISHED:
            values["delete_after"] = claim.claimed_at + (-HOUR if expired else DAY)
            values["finished_at"] = claim.claimed_at - (2 * DAY if old else timedelta(0))
            return outcome(claim, kind, **values)
        after = claim.claimed_at + (HOUR if kind == "later" else -HOUR)
        return outcome(claim, "READY", run_after=after, **values)

    def _settled(self, id: UUID, claim: store.Claim, kind: str, expired: bool, old: bool) -> None:
        row = self.rows[id]
        row |= {"worker_id": None, "hold": "scheduled" if kind == "later" else ""}
        row["status"] = kind if kind in FINISHED else "READY"
        self.come.discard(id)
        if kind == "released":
            row["attempt"] -= 1
            return
        row["worker_ids"] += 1
        row["releases"] += 1
        row["errors"] += kind != "SUCCESSFUL"
        row["failures"] += kind != "SUCCESSFUL"
        if kind in FINISHED:
            row |= {"expired": expired, "old": old}

    # People, and time

    @rule(numbers=SOME)
    def cancel(self, numbers: list[int]) -> None:
        some = self._some(numbers)
        waiting = self._in("READY", among=some)
        assert store.cancel(DB, some, lambda row: DAY) == len(waiting)
        for id in waiting:
            row = self.rows[id]
            row |= {"status": "FAILED", "hold": "", "expired": False, "old": False}
            row["errors"] += 1

    @rule(numbers=SOME)
    def retry(self, numbers: list[int]) -> None:
        some = self._some(numbers)
        fresh = {"failures": 0, "lost": 0, "releases": 0, "expired": False}
        failed = self._in("FAILED", among=some)
        assert store.retry(DB, some) == self._set(failed, status="READY", **fresh)

    @rule(numbers=SOME)
    def run_now(self, numbers: list[int]) -> None:
        some = self._some(numbers)
        held = self._in("READY", among=some, hold="scheduled")
        assert store.run_now(DB, some) == self._set(held, hold="")

    @rule()
    def purge(self) -> None:
        assert store.purge(DB, "default") == self._gone(self._in(*FINISHED, expired=True))

    @rule(numbers=SOME, expired=st.booleans())
    def delete(self, numbers: list[int], expired: bool) -> None:
        some = self._some(numbers)
        ended = self._in(*FINISHED, among=some, **({"expired": True} if expired else {}))
        assert store.delete(DB, some, expired=expired) == self._gone(ended)

    @rule(batch=st.integers(1, 3), statuses=st.sampled_from([FINISHED, ("FAILED",)]))
    def purge_older(self, batch: int, statuses: tuple[str, ...]) -> None:
        deleted = list(store.purge_older(DB, DAY, statuses=statuses, batch=batch))
        assert max(deleted, default=0) <= batch
        assert sum(deleted) == self._gone(self._in(*statuses, old=True))

    def _gone(self, found: list[UUID]) -> int:
        for id in found:
            del self.rows[id]
        return len(found)

    # Workers

    @rule(slot=WORKERS)
    def beat(self, slot: str) -> None:
        """Whoever finds that it was declared lost joins anew."""
        name = self.names[slot]
        beat = self.workers[name]
        assert workers.beat(DB, name) == (beat is not None)
        if beat is None:
            self._join(slot)
        else:
            self.workers[name] = beat + 1

    @rule(slot=WORKERS, late=st.integers(0, 1))
    def declare_lost(self, slot: str, late: int) -> None:
        """By the last beat, or by one that was seen before it."""
        name = self.names[slot]
        beat = self.workers[name]
        assert workers.declare_lost(DB, name, (beat or 0) - late) == (beat is not None and not late)
        if not late:
            self.workers[name] = None

    @rule(may_retry=st.booleans())
    def rescue(self, may_retry: bool) -> None:
        lost = {name for name, beat in self.workers.items() if beat is None}
        held = [id for id in self._in("RUNNING") if self.rows[id]["worker_id"] in lost]
        found = rescue(KeepsADay(may_retry))
        assert sorted(row.pk for row in found) == sorted(held)
        for id in held:
            row = self.rows[id]
            row |= {"lost": row["lost"] + 1, "worker_id": None, "expired": False, "old": False}
            row |= {"worker_ids": row["worker_ids"] + 1, "errors": min(10, row["errors"] + 1)}
            row["status"] = "READY" if may_retry and row["lost"] < MAX_LOST else "FAILED"

    # After each step

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        names = [name for name in NEW if name not in ("expired", "old")]
        found = {}
        for row in ScheduledTask.objects.using(DB).values("id", *names):
            lengths = {name: len(row[name] or []) for name in ("worker_ids", "errors")}
            id = row.pop("id")
            found[id] = row | lengths
        expected = {id: {name: row[name] for name in names} for id, row in self.rows.items()}
        assert found == expected, f"{found} is not {expected}"

    @invariant()
    def a_peek_sees_what_is_due(self) -> None:
        held = self._in("READY", hold="scheduled")
        peek = store.peek(DB, "default")
        assert peek.due == bool(self._in("READY", hold=""))
        assert (peek.next_due is None) == (not held)
        if held:
            assert (peek.next_due <= 0) == bool(self.come & set(held))


class MachineTests(TransactionTestCase):
    """Every transition, in any order."""

    def test_rows_are_as_a_model_says(self):
        """Whatever is done, by whomever, however late or twice."""
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                print_blob=True,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
