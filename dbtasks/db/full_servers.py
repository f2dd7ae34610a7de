"""Connecting to a server that has no connection left.

Owns how long task code waits for one: it would fail otherwise, though it has done nothing wrong.
Never limits how many connections there are.
"""

import logging
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from threading import get_ident
from typing import Any
from weakref import ref

from django.db import OperationalError, connections

logger = logging.getLogger("dbtasks.runner")

# Seconds that task code waits for a connection, and between two tries.
FULL_TIMEOUT = 30.0
FULL_PAUSE = 0.25
# How MySQL, PostgreSQL and PgBouncer say that they have none left.
_FULL_CODES = {(1040,), (1203,), (1226,)}
_FULL_TEXTS = ("too many", "connection slots are reserved", "no more connections allowed")


def wait_in_this_thread() -> None:
    """Make connections of this thread wait when their server has no connection left.

    After FULL_TIMEOUT seconds connecting fails.
    """
    for connection in connections.all():
        wait_for_room(connection)


def wait_for_room(connection: Any) -> None:
    """Make the connection wait when its server has no connection left."""
    # Not the connection itself: a cycle would wait for the garbage collector.
    connection.connect = partial(_connect, ref(connection))


def waits_for_room(connection: Any) -> bool:
    """Return whether wait_for_room() was called for the connection."""
    return "connect" in vars(connection)


def _connect(reference: "ref[Any]") -> None:
    connection: Any = reference()
    deadline = time.monotonic() + FULL_TIMEOUT
    while True:
        try:
            type(connection).connect(connection)
            return
        except OperationalError as error:
            if not _is_full(error) or time.monotonic() > deadline:
                raise
            logger.debug("%r has no connection left: %s", connection.alias, error)
        time.sleep(FULL_PAUSE)


def _is_full(error: Exception) -> bool:
    """Return whether the server, or a pooler, has refused one connection too many."""
    # PostgreSQL's driver shows no code when it cannot connect.
    return error.args[:1] in _FULL_CODES or any(text in str(error) for text in _FULL_TEXTS)


class SyncThread(Executor):
    """The thread in which a coroutine's thread-sensitive code runs, such as the ORM.

    It starts when it is first used. Most coroutines never use it.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        # The id of the thread, once it has started.
        self.ident: int | None = None

    def _begin(self) -> None:
        self.ident = get_ident()
        wait_in_this_thread()

    @property
    def has_started(self) -> bool:
        """Whether it was used."""
        return self._pool is not None

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, initializer=self._begin)
        return self._pool.submit(call, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)
