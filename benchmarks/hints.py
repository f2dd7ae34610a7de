"""What a hint costs: to run the row that it names, to find nothing to do, and to be sent.

Owns the measure `hints`. Never talks to a real service: what stands for one listens on loopback.
Never prints: it yields rows of the table, as `(what, values, unit, reference)`.
"""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import rows

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, list[float], str, list[float] | None]
# Clients that send hints at the same time.
CLIENTS = 8
# What stands for a service answers after so many seconds.
ANSWER = 0.001


def hints(count: int, runs: int) -> Iterator[Row]:
    """Rows one at a time by their id, beside SQL alone; then many clients; then sending."""
    few = max(100, count // 100)
    yield from _running(few, runs)
    yield from _clients(few, runs)
    yield from _sending(few, runs)


def _times(calls: list[Callable[[], Any]]) -> float:
    """Return the milliseconds that each call takes, on average."""
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls) * 1000


# Running


def _running(few: int, runs: int) -> Iterator[Row]:
    from dbtasks import run_task
    from dbtasks.door import Door
    from dbtasks.hinted import run_hinted

    reference, plain, hinted, again, shared = [], [], [], [], []
    door = Door(interrupts=True, fresh_context=True)
    for _ in range(runs):
        reference.append(_times([lambda id=id: _raw(id) for id in _fresh(few)]))
        plain.append(_times([lambda id=id: run_task(id) for id in _fresh(few)]))
        ids = _fresh(few)
        hinted.append(_times([lambda id=id: run_hinted(door, "default", id) for id in ids]))
        again.append(_times([lambda id=id: run_hinted(door, "default", id) for id in ids]))
        shared.append(_shared(door, _fresh(few)))
    yield "raw SQL: claim and finish one row", reference, "ms", None
    yield "run_task() of a due row", plain, "ms", reference
    yield "a hint for a due row", hinted, "ms", reference
    yield "the same, if one worker runs them all", shared, "ms", reference
    yield "the same hint once more", again, "ms", reference
    yield "statements of that", [float(_statements(ids[0]))], "", None


def _shared(door: Any, ids: list[str]) -> float:
    """Return the milliseconds for each row if its worker is registered once for all of them."""
    from dbtasks.inline import Inline

    def run(id: str) -> None:
        inline.run(inline.claim_found(inline.find(id)))

    with Inline("default", door) as inline:
        return _times([lambda id=id: run(id) for id in ids])


def _fresh(few: int) -> list[str]:
    """Return the ids of so many new rows, which are all there are."""
    from benchmarks.tasks import noop

    rows.clear()
    return [result.id for result in noop.enqueue_many([((), {})] * few)]


def _raw(id: str) -> None:
    from django.db import connection

    from dbtasks.models import TABLE

    key = id.replace("-", "") if connection.vendor != "postgresql" else id
    for status in ("RUNNING", "SUCCESSFUL"):
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {TABLE} SET status = %s WHERE id = %s", [status, key])


def _statements(id: str) -> int:
    """Return how many statements a hint for a finished row takes."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from dbtasks.door import Door
    from dbtasks.hinted import run_hinted

    with CaptureQueriesContext(connection) as captured:
        run_hinted(Door(), "default", id)
    return len(captured)


# Clients


SERVER = """
import os, sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
import django
django.setup()
from django.core.wsgi import get_wsgi_application
class Server(ThreadingMixIn, WSGIServer):
    daemon_threads, request_queue_size = True, 64
class Handler(WSGIRequestHandler):
    def log_message(self, *args): pass
server = Server(("127.0.0.1", 0), Handler)
server.set_app(get_wsgi_application())
print(server.server_port, flush=True)
server.serve_forever()
"""


def _clients(few: int, runs: int) -> Iterator[Row]:
    from dbtasks.push import HEADER, sign

    rates = []
    with _site() as port:
        for _ in range(runs):
            ids = _fresh(few)
            signed = [(f"/tasks/run/{id}/", {HEADER: sign("default", id)}) for id in ids]
            began = time.perf_counter()
            threads = [
                threading.Thread(target=_post, args=(port, signed[n::CLIENTS]))
                for n in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rates.append(few / (time.perf_counter() - began))
            _check(few)
    yield f"hints by HTTP, {CLIENTS} clients", rates, "/s", None


@contextmanager
def _site() -> Iterator[int]:
    """Serve the endpoints with threads in a process of its own; yield the port."""
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "benchmarks.site"}
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def _post(port: int, requests: list[tuple[str, dict[str, str]]]) -> None:
    for path, headers in requests:
        # A connection for each, as services do that spread over many machines.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, headers=headers)
        assert connection.getresponse().read().startswith(b'{"ran": true')
        connection.close()


def _check(few: int) -> None:
    from dbtasks.models import ScheduledTask

    assert ScheduledTask.objects.filter(status="SUCCESSFUL").count() == few


# Sending


def _sending(few: int, runs: int) -> Iterator[Row]:
    from benchmarks.tasks import noop

    enqueue = [noop.enqueue] * few
    without, with_push = [], []
    with _service(ANSWER) as port:
        for _ in range(runs):
            rows.clear()
            without.append(_times(enqueue))
            with _push(port):
                rows.clear()
                with_push.append(_times(enqueue))
    yield "enqueue() without a push", without, "ms", None
    yield "enqueue() with a push that answers in 1 ms", with_push, "ms", without
    with _service(None) as port, _push(port):
        waits = [_times([noop.enqueue]) for _ in range(few)]
    yield "enqueue() with a push that hangs, the first call", waits[:1], "ms", without
    yield "the calls after that", waits[1:], "ms", without


@contextmanager
def _push(port: int) -> Iterator[None]:
    """Let the backend push to that port, and this process send."""
    from django.conf import settings
    from django.test import override_settings

    from dbtasks.contrib.http import Post

    push = Post(f"http://127.0.0.1:{port}/?{{id}}", {"X-Hint": "{signature}"})
    backend = settings.TASKS["default"]
    changed = backend | {"OPTIONS": backend.get("OPTIONS", {}) | {"push": push}}
    os.environ["DBTASKS_PUSH"] = "on"
    try:
        with override_settings(TASKS=settings.TASKS | {"default": changed}):
            yield
    finally:
        del os.environ["DBTASKS_PUSH"]


@contextmanager
def _service(seconds: float | None) -> Iterator[int]:
    """Answer each request after so many seconds, or never; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    is_over = threading.Event()

    def answer(client: socket.socket) -> None:
        with client:
            client.recv(65536)
            if seconds is None:
                is_over.wait()
                return
            time.sleep(seconds)
            # In one piece: two would wait for each other (Nagle).
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        is_over.set()
        listener.close()


MEASURES = {"hints": hints}
