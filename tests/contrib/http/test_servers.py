"""The endpoints in real servers: many requests at once, clients that go away, signals."""

import http.client
import json
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from django.db import connections
from django.test import LiveServerTestCase, tag

from dbtasks.contrib.http import Bearer, Signed
from dbtasks.models import ScheduledTask, Worker
from dbtasks.push import HEADER, sign

from ... import tasks
from ...support.mounts import TOKEN, mounted
from ...support.processes import Child, freeze
from ...support.sites import SiteTestCase, free_port, is_open
from ...support.waiting import MAX_WAIT, until

URLS = f"""
from django.urls import path

from dbtasks.contrib.http import Bearer, Signed, endpoints

urlpatterns = [path("tasks/", endpoints(auth=[Signed(), Bearer({TOKEN!r})]))]
"""
PLAIN = """
import os

from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"

application = get_asgi_application()
"""


def send(address: str, url: str, headers: dict[str, str]) -> tuple[int, Any]:
    """Return code and JSON of the answer to a POST."""
    connection = http.client.HTTPConnection(address, timeout=MAX_WAIT)
    try:
        connection.request("POST", f"/tasks/{url}", b"", headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def hint(address: str, id: str) -> tuple[int, Any]:
    """Return code and JSON of the answer to a hint."""
    return send(address, f"run/{id}/", {HEADER: sign("default", id)})


@tag("site")
class ThreadedServerTests(LiveServerTestCase):
    """A threaded WSGI server in this process."""

    def setUp(self) -> None:
        self.enterContext(mounted(auth=[Signed(), Bearer(TOKEN)], concurrency=20))
        self.address = f"{self.server_thread.host}:{self.server_thread.port}"
        tasks.ran.clear()
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)

    def test_twenty_hints_for_one_row_at_once(self):
        """All are answered, one of them ran the row, once; no worker is left behind."""
        row = tasks.pass_gate.enqueue()
        begin = threading.Barrier(20)

        def one() -> tuple[int, Any]:
            begin.wait(MAX_WAIT)
            return hint(self.address, row.id)

        with ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(one) for _ in range(20)]
            until(lambda: sum(future.done() for future in futures) == 19, "The duplicates")
            tasks.Gate.opened.set()
            answers = [future.result() for future in futures]

        self.assertEqual({200}, {code for code, _ in answers})
        self.assertEqual(1, sum(answer["ran"] for _, answer in answers))
        self.assertEqual({"running", "held", None}, {a.get("why") for _, a in answers} | {"held"})
        self.assertEqual((1, "SUCCESSFUL"), self.ends(row.id))
        self.assertFalse(Worker.objects.exists())

    def ends(self, id: str) -> tuple[int, str]:
        row = ScheduledTask.objects.get(pk=id)
        return row.attempt, row.status

    def test_hints_and_sweeps_together(self):
        """Each row runs once, whoever comes first."""
        rows = [tasks.remember.enqueue(n) for n in range(30)]
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(hint, self.address, row.id) for row in rows]
            for url in ("sweep/", "run/"):
                futures.append(pool.submit(send, self.address, url, bearer))
            codes = {future.result()[0] for future in futures}

        self.assertEqual({200}, codes)
        self.assertEqual(list(range(30)), sorted(tasks.ran))
        self.assertEqual({(1, "SUCCESSFUL")}, {self.ends(row.id) for row in rows})
        self.assertFalse(Worker.objects.exists())


@tag("site")
class UvicornTests(SiteTestCase):
    """uvicorn, in processes of its own."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "mysite" / "urls.py").write_text(URLS)
        (self.folder / "mysite" / "plain.py").write_text(PLAIN)
        self.pool = self.enterContext(ThreadPoolExecutor(4))
        self.addCleanup((self.folder / "go").touch)

    def server(self, **environment: str) -> tuple[Child, str]:
        """Start a server; return it and its address."""
        address = f"127.0.0.1:{free_port()}"
        host, port = address.split(":")
        command = [sys.executable, "-m", "uvicorn", "--host", host, "--port", port]
        child = self.serve(*command, "mysite.plain:application", **environment)
        until(lambda: is_open(address) or child.process.poll() is not None, "The server")
        self.assertIsNone(child.process.poll(), child.said)
        return child, address

    def busy(self, address: str) -> tuple[Any, Future[tuple[int, Any]]]:
        """Return a task that runs in that server, and what the hint will be answered."""
        row = tasks.wait_for_file.enqueue(str(self.folder))
        future = self.pool.submit(hint, address, row.id)
        until((self.folder / "started").exists, "The task")
        return row, future

    def assert_ended(self, row: Any, attempt: int) -> None:
        self.wait_for_status(row, "SUCCESSFUL")
        self.assertEqual(attempt, ScheduledTask.objects.get(pk=row.id).attempt)
        until(lambda: not Worker.objects.filter(state="live").exists(), "The end of the worker")

    def test_requests_run_tasks(self):
        """Also coroutines, and several tasks in one sweep; a stop waits for the task."""
        child, address = self.server()
        row = tasks.noop_task_async.enqueue()
        code, answer = hint(address, row.id)
        self.assertEqual((200, True, "SUCCESSFUL"), (code, answer["ran"], answer["status"]))
        for n in range(3):
            tasks.add.enqueue(n, 1)
        code, answer = send(address, "sweep/", {"Authorization": f"Bearer {TOKEN}"})
        self.assertEqual((200, 3), (code, answer["succeeded"]))

        busy, future = self.busy(address)
        child.signal(signal.SIGTERM)
        (self.folder / "go").touch()

        self.assertEqual((200, True), (future.result()[0], future.result()[1]["ran"]))
        self.assert_ended(busy, 1)

    def test_a_client_that_goes_away(self):
        """The task ends, the row is settled, and the server goes on."""
        _, address = self.server()
        row = tasks.wait_for_file.enqueue(str(self.folder))
        connection = http.client.HTTPConnection(address, timeout=MAX_WAIT)
        headers = {HEADER: sign("default", row.id)}
        connection.request("POST", f"/tasks/run/{row.id}/", b"", headers)
        until((self.folder / "started").exists, "The task")
        connection.close()
        (self.folder / "go").touch()

        self.assert_ended(row, 1)
        other = tasks.add.enqueue(1, 2)
        self.assertTrue(hint(address, other.id)[1]["ran"])

    def test_a_server_that_is_killed(self):
        """The next hint rescues the row and runs it."""
        child, address = self.server()
        row, future = self.busy(address)
        child.signal(signal.SIGKILL)
        with self.assertRaises(OSError):
            future.result()
        (self.folder / "go").touch()
        _, second = self.server()

        code, answer = hint(second, row.id)

        self.assertEqual((200, True, 2), (code, answer["ran"], answer["attempt"]))
        self.assert_ended(row, 2)

    def test_a_server_that_stood_still(self):
        """Another one has run the row by then: the late outcome is dropped by the fence."""
        fast = {"TEST_WORKER_TIMEOUT": "2"}
        child, address = self.server(**fast)
        row, future = self.busy(address)
        freeze(child.process.pid)
        (self.folder / "go").touch()
        _, second = self.server(**fast)

        def runs() -> bool:
            return bool(hint(second, row.id)[1].get("ran"))

        until(runs, "The rescue")
        self.wait_for_status(row, "SUCCESSFUL")
        before = ScheduledTask.objects.values().get(pk=row.id)
        child.signal(signal.SIGCONT)
        self.assertEqual(200, future.result()[0])

        self.assertEqual(before, ScheduledTask.objects.values().get(pk=row.id))
        self.assertEqual(2, before["attempt"])
        connections.close_all()
