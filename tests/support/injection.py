"""Statements that fail when told to, in every way in which databases fail.

A statement is known by its site: the functions of the package that lead to it, and its verb. A
connect and a commit are statements too.
"""

import os
import re
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

from django.db import DatabaseError, InterfaceError, InternalError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

import dbtasks

PACKAGE = Path(dbtasks.__file__).parent
HERE = Path(__file__).resolve()
# Functions that only pass a call on.
PLUMBING = {"db.service", "store.unit", "db.timeouts"}
WRITES = re.compile(r"\b(UPDATE|INSERT|DELETE|REPLACE)\b")
VERB = re.compile(r"\b(UPDATE|INSERT|DELETE|SELECT|CONNECT|COMMIT|SAVEPOINT|RELEASE|ROLLBACK)\b")
# Seconds for which an outage lasts: a node is read-only, or takes no connections.
OUTAGE = 0.4
# Seconds for which the file of a SQLite database is locked.
LOCKED = 0.7


class Failure(DatabaseError):
    """Stands in for the driver's error, as the cause of Django's."""

    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def _raise(kind: type[Exception], text: str, sqlstate: str | None = None) -> None:
    raise kind(text) from Failure(text, sqlstate)


class Site:
    """Where a statement comes from."""

    def __init__(self, chain: tuple[str, ...], verb: str) -> None:
        self.chain, self.verb = chain, verb

    def __str__(self) -> str:
        return f"{' > '.join(self.chain)}: {self.verb}"


class Injector:
    """Counts the statements of the threads that a test starts, and lets one of them fail.

    `arm()` names the statement and how it fails; `struck` tells whether it was reached. As a
    context manager it watches all connections that are made while the block runs.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.struck = threading.Event()
        self._target: tuple[str, int] | None = None
        self._kind = ""
        self._spared = {threading.get_ident()}
        self._lock = threading.Lock()
        # Until when, on the monotonic clock, new connections are refused, or read-only.
        self._refused_until = self._read_only_until = 0.0
        # Connections to a node that became read-only. They stay so.
        self._demoted: set[int] = set()
        # Ends of sockets at which nobody answers.
        self._silent: list[socket.socket] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        connection_created.connect(self._watch)
        self._exit.callback(connection_created.disconnect, self._watch)
        for name in ("connect", "_commit"):
            self._exit.enter_context(self._patched(name))
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._exit.close()

    def _patched(self, name: str) -> Any:
        original = getattr(BaseDatabaseWrapper, name)
        verb = name.strip("_").upper()

        def call(connection: Any) -> Any:
            return self._pass(connection, verb, lambda: original(connection))

        return mock.patch.object(BaseDatabaseWrapper, name, call)

    def _watch(self, connection: Any, **_: Any) -> None:
        if threading.get_ident() in self._spared:
            return
        if time.monotonic() < self._read_only_until:
            self._demoted.add(id(connection.connection))
        else:
            self._demoted.discard(id(connection.connection))
        if self._execute not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._execute)

    def _execute(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return self._pass(context["connection"], sql, lambda: execute(sql, params, many, context))

    def _pass(self, connection: Any, sql: str, run: Callable[[], Any]) -> Any:
        """Let the statement pass, or fail."""
        if threading.get_ident() in self._spared or (site := site_of(sql)) is None:
            return run()
        label = str(site)
        with self._lock:
            self.counts[label] += 1
            is_hit = self._target == (label, self.counts[label])
            if is_hit:
                self._target = None
        if is_hit:
            try:
                return getattr(self, f"_{self._kind}")(connection, run)
            finally:
                self.struck.set()
        if site.verb == "CONNECT" and time.monotonic() < self._refused_until:
            _raise(OperationalError, "FATAL: sorry, too many clients already", "53300")
        if id(connection.connection) in self._demoted and WRITES.search(sql):
            _raise(InternalError, "cannot execute UPDATE in a read-only transaction", "25006")
        return run()

    def arm(self, label: str, occurrence: int, kind: str) -> None:
        """Let that statement fail in that way, the n-th time that it is executed."""
        self.heal()
        self.counts.clear()
        self.struck.clear()
        self._target, self._kind = (label, occurrence), kind

    def heal(self) -> None:
        """End all that is broken."""
        self._target = None
        self._refused_until = self._read_only_until = 0.0
        self._demoted.clear()
        while self._silent:
            self._silent.pop().close()

    # Ways to fail

    def _operational(self, connection: Any, run: Callable[[], Any]) -> Any:
        _raise(OperationalError, "injected: the server is short of something", "53000")

    def _internal(self, connection: Any, run: Callable[[], Any]) -> Any:
        _raise(InternalError, "injected: cache lookup failed", "XX000")

    def _interface(self, connection: Any, run: Callable[[], Any]) -> Any:
        if connection.vendor != "sqlite" and connection.connection is not None:
            connection.connection.close()
        _raise(InterfaceError, "injected: the connection is closed")

    def _read_only(self, connection: Any, run: Callable[[], Any]) -> Any:
        """All nodes that can be reached are read-only for a while; sessions stay on them."""
        self._read_only_until = time.monotonic() + OUTAGE
        if connection.connection is not None:
            self._demoted.add(id(connection.connection))
        _raise(InternalError, "cannot execute UPDATE in a read-only transaction", "25006")

    def _too_many(self, connection: Any, run: Callable[[], Any]) -> Any:
        """The session is ended, and no new one can be had for a while."""
        self._refused_until = time.monotonic() + OUTAGE
        self._cut(connection)
        _raise(OperationalError, "FATAL: sorry, too many clients already", "53300")

    def _cut_before(self, connection: Any, run: Callable[[], Any]) -> Any:
        if connection.vendor == "sqlite" or connection.connection is None:
            _raise(OperationalError, "disk I/O error")
        self._cut(connection)
        return run()

    def _cut_after(self, connection: Any, run: Callable[[], Any]) -> Any:
        run()
        self._cut(connection)
        _raise(OperationalError, "injected: the server closed the connection unexpectedly")

    def _hang(self, connection: Any, run: Callable[[], Any]) -> Any:
        """No answer ever comes; a SQLite file is locked for a while."""
        if connection.vendor == "sqlite":
            _lock_file(connection)
            return run()
        if connection.connection is None:
            # The driver itself limits this, with the seconds that it takes.
            _raise(OperationalError, "connection timeout expired")
        ours, theirs = socket.socketpair()
        self._silent.append(theirs)
        os.dup2(ours.fileno(), connection.connection.fileno())
        ours.close()
        return run()

    def _cut(self, connection: Any) -> None:
        if connection.vendor == "sqlite" or connection.connection is None:
            return
        with (
            suppress(Exception),
            socket.socket(fileno=os.dup(connection.connection.fileno())) as end,
        ):
            end.shutdown(socket.SHUT_RDWR)


KINDS = (
    "operational",
    "internal",
    "interface",
    "read_only",
    "too_many",
    "cut_before",
    "cut_after",
    "hang",
)


def site_of(sql: str) -> Site | None:
    """Return the site of the statement that this thread executes; None if the package has none."""
    frame: Any = sys._getframe(1)
    chain: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            if module not in PLUMBING and not frame.f_code.co_name.startswith("<"):
                chain.append(f"{module}.{frame.f_code.co_name}")
        elif not chain and path != HERE and path.is_relative_to(HERE.parents[1]):
            # A statement of a task, not of ours.
            return None
        frame = frame.f_back
    if not chain:
        return None
    verbs = VERB.findall(sql)
    return Site(tuple(reversed(chain[:6])), verbs[-1] if verbs else sql.split()[0])


def _lock_file(connection: Any) -> None:
    """Lock the file of the connection's database for a while, unless it is locked already."""
    name = connection.settings_dict["NAME"]
    other = sqlite3.connect(name, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        other.close()
        return
    threading.Timer(LOCKED, other.close).start()
