"""How many requests run tasks at the same time, and what runs alone."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

from django.db import connections
from django.test import SimpleTestCase, TransactionTestCase

from dbtasks.contrib.http import Bearer, gate, work
from dbtasks.contrib.http.work import _alone
from dbtasks.door import Crowded
from dbtasks.models import Hold, ScheduledTask

from ... import tasks
from ...support.mounts import TOKEN, error_of, get, mounted, post
from ...support.waiting import MAX_WAIT, until


class GateTests(SimpleTestCase):
    """Gate and alone(), in threads."""

    def setUp(self) -> None:
        self.pool = self.enterContext(ThreadPoolExecutor(8))
        self.leave = threading.Event()
        self.addCleanup(self.leave.set)
        self.present: list[str] = []

    def stay(self, door: gate.Gate, name: str, *, alone: bool = False, wait: float = 20) -> None:
        """Hold a slot, alone or not, until everybody may leave."""
        with door.slot(wait):
            if not alone:
                self.present.append(name)
                self.leave.wait(MAX_WAIT)
                self.present.remove(name)
                return
            with gate.alone(wait):
                self.present.append(name)
                self.crowd = list(self.present)
                self.present.remove(name)

    def start(self, *arguments: Any, **more: Any) -> Future[None]:
        return self.pool.submit(self.stay, *arguments, **more)

    def test_a_full_gate_lets_nobody_in(self):
        """After the wait it raises Full; another gate has slots of its own."""
        door, other = gate.Gate(2), gate.Gate(1)
        for name in "ab":
            self.start(door, name)
        until(lambda: len(self.present) == 2)

        with self.assertRaises(gate.Full), door.slot(0.01):
            self.fail("Three are in.")
        with other.slot(0.01):
            pass

        self.leave.set()
        with door.slot():
            pass

    def test_who_runs_alone_waits_for_all_others(self):
        """Also for those at another gate; meanwhile nobody comes in."""
        door, other = gate.Gate(3), gate.Gate(2)
        self.start(door, "a")
        self.start(other, "b")
        until(lambda: len(self.present) == 2)

        single = self.start(door, "single", alone=True)
        until(lambda: gate._crowd.waiting)
        for full in (door, other):
            with self.assertRaises(gate.Full), full.slot(0.01):
                self.fail("Somebody is in beside the row that runs alone.")
        self.assertFalse(single.done())
        self.leave.set()
        single.result(MAX_WAIT)

        self.assertEqual(["single"], self.crowd)
        with door.slot(0.01), other.slot(0.01):
            pass

    def test_two_who_run_alone_do_not_wait_for_each_other(self):
        """One runs after the other."""
        door, begin = gate.Gate(3), threading.Barrier(3)
        busy: list[int] = []
        most = []

        def single() -> None:
            with door.slot():
                begin.wait(MAX_WAIT)
                for _ in range(50):
                    with gate.alone(MAX_WAIT):
                        busy.append(1)
                        most.append(len(busy))
                        busy.pop()

        for future in [self.pool.submit(single) for _ in range(3)]:
            future.result(MAX_WAIT)

        self.assertEqual([1] * 150, most)

    def test_others_that_do_not_end(self):
        """It gives up, and the gate works as before."""
        door = gate.Gate(3)
        self.start(door, "a")
        until(lambda: self.present)

        with self.assertRaises(gate.Full):
            self.start(door, "single", alone=True, wait=0.05).result(MAX_WAIT)

        with door.slot(0.01):
            pass

    def test_nothing_starts_alone_after_its_end(self):
        """Not even if nobody is there to wait for."""
        with self.assertRaises(Crowded), _alone(time.monotonic()):
            self.fail("It starts too late.")

    def test_nobody_is_kept_out_for_long(self):
        """However much time the request has."""
        with mock.patch.object(work, "alone", side_effect=gate.Full) as alone:
            for left in (3600, 2):
                with self.assertRaises(Crowded), _alone(time.monotonic() + left):
                    self.fail("It is not alone.")

        self.assertEqual(5.0, alone.mock_calls[0].args[0])
        self.assertLessEqual(alone.mock_calls[1].args[0], 2)

    def test_the_end_of_being_alone_is_counted_from_the_request(self):
        """Its own max_seconds counts, and ten seconds are left before the deadline."""
        for deadline, given, expected in (
            (None, {}, 120.0),
            (None, {"max_seconds": 7}, 107.0),
            (60.0, {}, 120.0),
            (25.0, {}, 115.0),
        ):
            with self.subTest(deadline=deadline, given=given):
                mount = mock.Mock(max_seconds=20.0, deadline=deadline)
                door = work.Call(mount, False, given, None, 100.0).door()
                with mock.patch.object(work, "alone"), mock.patch.object(work, "time") as clock:
                    clock.monotonic.return_value = expected - 0.5
                    with door.alone():
                        pass
                    clock.monotonic.return_value = expected
                    with self.assertRaises(Crowded), door.alone():
                        self.fail("It starts too late.")


class ConcurrencyTests(TransactionTestCase):
    """The gate in front of the endpoints."""

    def setUp(self) -> None:
        self.enterContext(mounted(auth=[Bearer(TOKEN)], concurrency=2, max_seconds=20))
        self.pool = self.enterContext(ThreadPoolExecutor(8))
        tasks.ran.clear()
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)

    def later(self, url: str) -> Future[Any]:
        """Return what a POST in another thread will answer."""

        def work() -> Any:
            try:
                return post(url)
            finally:
                connections.close_all()

        return self.pool.submit(work)

    def occupy(self, count: int) -> list[Future[Any]]:
        """Let so many requests run tasks until the gate is opened."""
        rows = [tasks.pass_gate.enqueue() for _ in range(count)]
        found = [self.later(f"run/{row.id}/") for row in rows]
        running = ScheduledTask.objects.filter(status="RUNNING")
        until(lambda: running.count() == count, "The tasks")
        return found

    def test_a_full_gate(self):
        """503 within 1.1 seconds, and nothing is claimed; status and purge need no slot."""
        busy = self.occupy(2)
        row = tasks.remember.enqueue(1)
        for url in ("sweep/", "run/", f"run/{row.id}/"):
            began = time.monotonic()
            response = post(url)
            self.assertLess(time.monotonic() - began, 1.1)
            self.assertEqual((503, "5"), (response.status_code, response["retry-after"]))
            self.assertEqual("too many requests run tasks", error_of(response))
        self.assertEqual(200, get("status/").status_code)
        self.assertEqual(200, post("purge/").status_code)
        self.assertEqual(0, ScheduledTask.objects.get(pk=row.id).attempt)

        tasks.Gate.opened.set()
        self.assertEqual([200, 200], [future.result().status_code for future in busy])
        self.assertEqual(200, post(f"run/{row.id}/").status_code)

    def quarantined(self, what: Any) -> str:
        row = tasks.remember.enqueue(what)
        ScheduledTask.objects.filter(pk=row.id).update(hold=Hold.QUARANTINED, lost=2)
        return row.id

    def test_a_quarantined_row_runs_alone(self):
        """It waits for the others, and nobody comes in meanwhile."""
        busy = self.occupy(1)
        waiting = tasks.remember.enqueue("other")
        single = self.later(f"run/{self.quarantined('single')}/")
        until(lambda: gate._crowd.waiting, "The quarantined row")

        self.assertEqual(503, post(f"run/{waiting.id}/").status_code)
        self.assertFalse(single.done())
        tasks.Gate.opened.set()
        answers = [future.result().json() for future in (*busy, single)]

        self.assertEqual([True, True], [answer["ran"] for answer in answers])
        self.assertEqual(["single"], tasks.ran)

    def test_a_quarantined_row_beside_a_task_that_does_not_end(self):
        """The sender is asked to come again; the row is left as it was."""
        with mounted(auth=[Bearer(TOKEN)], concurrency=2, max_seconds=1):
            busy = self.occupy(1)
            id = self.quarantined("single")
            self.assertEqual(503, post(f"run/{id}/").status_code)
            self.assertEqual(Hold.QUARANTINED, ScheduledTask.objects.get(pk=id).hold)
            answer = post("sweep/").json()
            self.assertEqual((0, True), (answer["ran"], answer["due_left"]))

            tasks.Gate.opened.set()
            busy[0].result()
            self.assertEqual(1, post("sweep/").json()["ran"])
