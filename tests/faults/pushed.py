"""Processes of the storm of pushes: one that enqueues, those that serve, and one that sweeps."""

import random
import time
from typing import Any

import dbtasks
from dbtasks import Snooze

from .ledger import note

# How often these tasks fail before they succeed, or for good.
STUMBLES, FAILURES = 2, 2
# Seconds that a task takes: so it is killed in the middle, sometimes.
PACE = 0.2


def _note(context: Any, what: str) -> None:
    # Each request has a thread of its own.
    note(context, what, is_last=True)


@dbtasks.task(takes_context=True)
def succeed(context: Any) -> int:
    """Succeed."""
    _note(context, "start")
    time.sleep(PACE)
    _note(context, "end")
    return int(context.attempt)


@dbtasks.task(max_attempts=10, backoff=0.2, takes_context=True)
def stumble(context: Any) -> int:
    """Fail at the first starts."""
    _note(context, "start")
    time.sleep(PACE)
    if context.attempt <= STUMBLES:
        raise ValueError(context.attempt)
    _note(context, "end")
    return int(context.attempt)


@dbtasks.task(max_attempts=FAILURES, backoff=0.2, takes_context=True)
def fail(context: Any) -> None:
    """Fail."""
    _note(context, "start")
    time.sleep(PACE)
    raise ValueError(context.attempt)


@dbtasks.task(takes_context=True)
def doze(context: Any) -> int:
    """Ask to be run later, at the first start."""
    _note(context, "start")
    time.sleep(PACE)
    if context.attempt == 1:
        raise Snooze(0.5)
    _note(context, "end")
    return int(context.attempt)


def enqueue(seed: str, count: int, seconds: float) -> None:
    """Enqueue so many rows, one by one and in bulk, within about so many seconds."""
    from datetime import timedelta

    from django.db import transaction

    chance, left = random.Random(seed), count
    while left:
        task: Any = chance.choice([succeed, succeed, stumble, fail, doze])
        if chance.random() < 0.2:
            task = task.using(run_after=timedelta(seconds=chance.uniform(0.1, 3)))
        # More than FAULTS_BULK, sometimes.
        size = min(left, chance.choice([1, 1, 1, 5, 30]))
        with transaction.atomic():
            task.enqueue_many([((), {})] * size)
            if is_undone := chance.random() < 0.1:
                transaction.set_rollback(True)
        left -= 0 if is_undone else size
        time.sleep(seconds / count * size)


def serve(host: str, port: int) -> None:
    """Serve the URLs in threads, as a process of that host, until it is killed."""
    import platform
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    from django.core.handlers.wsgi import WSGIHandler

    # Nobody but processes of the same host can tell that this one is gone.
    platform.node = lambda: host

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        request_queue_size = 64

    class Handler(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def address_string(self) -> str:
            return "127.0.0.1"

    with Server(("127.0.0.1", port), Handler) as server:
        server.set_app(WSGIHandler())
        print("Serving", flush=True)
        server.serve_forever()


def sweep_every(seconds: float) -> None:
    """Sweep, pause, and so on, until it is killed."""
    from django.db import DatabaseError, close_old_connections

    print("Sweeping", flush=True)
    while True:
        try:
            dbtasks.sweep(max_seconds=seconds, interval=seconds)
        except DatabaseError as error:
            print(error, flush=True)
        close_old_connections()
        time.sleep(seconds)
