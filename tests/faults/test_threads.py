"""Each thread of a runner is killed, starved and halted at each of its calls.

``python -m tests.faults threads`` tries every call; without it a few are drawn by lot.
"""

import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any
from unittest import mock

from django.test import TransactionTestCase, override_settings, tag

from dbtasks import Periodic, store
from dbtasks.db import timeouts
from dbtasks.db.timeouts import call_timeout
from dbtasks.events import JOINED, STALLED
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.runner import Runner, purger, run, scheduler
from dbtasks.store import workers

from ..support import tasks
from ..support.backends import backend
from ..support.rows import DB, make_task, vendor
from ..support.thread_faults import RUNNER, Injection, Place, silence
from ..support.waiting import until
from ..tasks import add
from .storm import IS_FULL, SEED

# Seconds of silence after which a runner is declared lost, here.
TIMEOUT = 2.0
# Seconds in which everything must have come to its end.
MOST = 25.0
FAULTS: list[type[BaseException] | None] = [SystemExit, MemoryError, None]
# How many faults are drawn by lot.
SAMPLES = int(os.environ.get("FAULTS_SAMPLES", "8"))
REMEMBER = "tests.support.tasks.remember"


@tag("faults")
class ThreadTests(TransactionTestCase):
    """One fault at a time."""

    def setUp(self) -> None:
        silence(self.addCleanup)
        for name in ("dbtasks", "dbtasks.runner", "dbtasks.wakeup", "dbtasks.periodic"):
            logger = logging.getLogger(name)
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        for where, name, value in (
            (timeouts, "FILE_TIMEOUT", 0.5),
            (run, "CALL_TIMEOUT", 1.0),
            (purger, "PURGE_INTERVAL", 0.5),
            (scheduler, "LOOK_INTERVAL", 0.2),
            (call_timeout.__init__, "__defaults__", (1.0,)),
        ):
            self.enterContext(mock.patch.object(where, name, value))
        schedule = {REMEMBER: Periodic("1s", lambda: [1], retain=0.1)}
        options = {"worker_timeout": TIMEOUT, "periodic": schedule}
        self.enterContext(
            override_settings(TASKS=backend(QUEUES=["default", "mail"], OPTIONS=options))
        )
        self.runners: list[Runner] = []

    def begin(self) -> Runner:
        """Start a runner in a thread of its own."""
        runner = Runner(workers=2, grace=1.0, loop_delay=0.2)
        runner.stalled = threading.Event()
        runner.events.subscribe(STALLED, lambda _: runner.stalled.set())

        runner.has_started = False

        def note(_: Any) -> None:
            runner.has_started = True

        runner.events.subscribe(JOINED, note)

        def live() -> None:
            with suppress(BaseException):
                runner.run()

        thread = threading.Thread(target=live, name=RUNNER, daemon=True)
        thread.start()
        self.runners.append(runner)
        return runner

    def load(self) -> None:
        """Enqueue what makes each thread do what it is there for."""
        for n in range(4):
            add.enqueue(n, 0)
        tasks.acarry.enqueue(False)
        tasks.fail_times.using(max_attempts=2, backoff=0.01).enqueue(1)
        tasks.spin.using(timeout=0.1).enqueue()
        workers.register(DB, "gone", "default", "", 1, 1)
        make_task(task_path="tests.tasks.add", queue_name="mail")
        store.claim(DB, "default", "gone", 1, ["mail"])
        workers.declare_lost(DB, "gone", 0)

    def is_over(self) -> bool:
        """Return whether every task has ended, and schedules fire."""
        left = ScheduledTask.objects.exclude(status__in=("SUCCESSFUL", "FAILED"))
        return not left.filter(schedule_key=None).exists()

    def fires(self) -> bool:
        """Return whether the schedule goes on."""
        row = PeriodicTask.objects.first()
        return row is not None and (store.now(DB) - row.next_tick).total_seconds() < 2

    def try_one(self, place: Place, number: int, fault: type[BaseException] | None) -> str:
        """Let that call fail; return what became of the runner."""
        self.load()
        where = f"{fault.__name__ if fault else 'hang'} at call {number} of {place}, seed {SEED}"
        with Injection(place, number, fault) as injection:
            runner = self.begin()
            try:
                became = self.judge(runner, injection)
            except AssertionError as error:
                rows = ScheduledTask.objects.exclude(status="SUCCESSFUL").filter(schedule_key=None)
                left = [(r.task_path, r.status, r.worker_id) for r in rows]
                self.fail(f"{where}: {error} {left}")
            finally:
                injection.release()
                self.close()
        self.check_ends(where)
        return became

    def judge(self, runner: Runner, injection: Injection) -> str:
        """Return whether the runner goes on whole, or has ended and others do the rest."""
        end = time.monotonic() + MOST

        def has_ended() -> bool:
            # A runner that hangs before it has started holds no row.
            is_stuck = injection.fired.is_set() and not runner.has_started
            return runner.finished.is_set() or runner.stalled.is_set() or is_stuck

        until(lambda: has_ended() or (self.is_over() and self.fires()), "An end", MOST)
        if not has_ended():
            # What is hidden for now must not be lost: it still beats, works and fires.
            until(lambda: has_ended() or injection.fired.is_set() or time.monotonic() > end - 20)
            late = add.enqueue(1, 2)
            ended = partial(ScheduledTask.objects.finished().filter(pk=late.id).exists)
            until(lambda: has_ended() or (ended() and self.fires()), "More work", MOST)
        if not has_ended():
            return "whole" if injection.fired.is_set() else "not reached"
        self.begin()
        until(lambda: self.is_over() and self.fires(), "The rescue", MOST)
        return "replaced"

    def check_ends(self, where: str) -> None:
        """Assert that rows have their promised ends, but for one at most, which says why."""
        odd = []
        for row in ScheduledTask.objects.filter(schedule_key=None):
            wanted = "FAILED" if row.task_path.endswith("spin") else "SUCCESSFUL"
            if row.status != wanted:
                odd.append((row.task_path, row.status, bool(row.errors)))
        self.assertLessEqual(len(odd), 1, (where, odd))
        self.assertTrue(all(said for _, _, said in odd), (where, odd))

    def close(self) -> None:
        """Stop all runners."""
        for runner in self.runners:
            runner.stop()
        for runner in self.runners:
            runner.finished.wait(10)
        self.runners.clear()

    def discover(self) -> dict[Place, int]:
        """Return how often each call is made until all is done."""
        self.load()
        with Injection() as injection:
            self.begin()
            until(lambda: self.is_over() and self.fires(), "All tasks", MOST)
            calls = dict(injection.calls)
        self.close()
        return calls

    def test_each_thread_may_fail_at_each_call(self):
        """The runner goes on whole, or ends, and others rescue its rows."""
        calls = self.discover()
        chance = random.Random(SEED)
        places = sorted(calls, key=str)
        if IS_FULL:
            chance.shuffle(places)
            cases = [(place, fault) for place in places for fault in FAULTS]
        else:
            # Each role is as likely as another, however much it does.
            roles = sorted({place.role for place in places})
            drawn = [chance.choice(roles) for _ in range(SAMPLES)]
            cases = [
                (chance.choice([place for place in places if place.role == role]), fault)
                for role in drawn
                for fault in [chance.choice(FAULTS)]
            ]
        became: Counter[str] = Counter()
        for place, fault in cases:
            for model in (ScheduledTask, PeriodicTask, Worker):
                model.objects.all().delete()
            with self.subTest(place=str(place), fault=fault):
                became[self.try_one(place, chance.randint(1, calls[place]), fault)] += 1
        found = Counter(place.role for place in places)
        print(f"\n{vendor()}: {dict(became)}, seed {SEED}; calls: {dict(found)}", file=sys.stderr)
