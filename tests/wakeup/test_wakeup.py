"""Hints from other processes, and what happens without them."""

import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import TestCase, mock, skipUnless

from django.db import connections, transaction
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.models import Worker
from dbtasks.store import workers
from dbtasks.testing import RunnerTestCase
from dbtasks.wakeup import notify, watchers
from dbtasks.wakeup.watchers import FileWatcher

from ..support import tasks
from ..support.rows import DB, make_task, row, vendor
from ..support.servers import kill_connections
from ..support.waiting import until


def enqueue_elsewhere() -> Any:
    """Write a row as another process does: nobody in this one is told."""
    id = make_task(task_path="tests.support.tasks.add")
    if vendor() == "postgresql":
        with connections[DB].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, 'default')", [notify.CHANNEL])
    return id


class HintTests(RunnerTestCase):
    """A runner that would sleep for minutes."""

    loop_delay = 300

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "mysql":
            self.skipTest("MySQL and MariaDB have no hints: runners poll")
        [watcher] = self.runner._run._watchers
        until(lambda: watcher.is_healthy)
        until(lambda: not self.runner._run._fetcher.may_be_due)

    def test_a_row_of_another_process_is_picked_up_at_once(self):
        """The hint wakes the runner long before its next poll."""
        id = enqueue_elsewhere()

        until(lambda: row(id).is_finished, timeout=10)

    def test_the_listening_session_shows_that_the_worker_is_there(self):
        """PostgreSQL knows when it ends; a runner that registers again is seen by its new name."""
        if vendor() != "postgresql":
            self.skipTest("only PostgreSQL's sessions can be seen")

        def is_seen() -> bool:
            key = workers.session_key(self.runner.worker_id)
            return key in workers.sessions(DB)[1]

        until(is_seen)
        workers.declare_lost(DB, self.runner.worker_id, Worker.objects.get().beat)
        self.runner._run._heartbeat._beat()
        enqueue_elsewhere()
        until(is_seen)

    def test_a_lost_listener_comes_back(self):
        """When the listening connection is cut, the runner listens again and polls at once."""
        if vendor() != "postgresql":
            self.skipTest("a file is watched, not listened to")
        kill_connections()
        id = make_task(task_path="tests.support.tasks.add")

        until(lambda: row(id).is_finished, timeout=10)


class CountingWakeable:
    """Counts how often it is woken."""

    worker_id = ""

    def __init__(self) -> None:
        self.polls = 0

    def poll_now(self) -> None:
        self.polls += 1


class FileTests(TestCase):
    """A SQLite file to which another connection writes."""

    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.name = Path(folder, "watched.sqlite3")
        file = {"ENGINE": "django.db.backends.sqlite3", "NAME": self.name, "OPTIONS": {}}
        settings = {"watched": connections.settings[DB] | file}
        self.enterContext(mock.patch.dict(connections.settings, settings))
        self.wakeable = CountingWakeable()

    def check(self, mode: str) -> None:
        """Write ten times, waiting for each to be seen."""
        with closing(sqlite3.connect(self.name, autocommit=True)) as file:
            file.execute(f"PRAGMA journal_mode={mode}")
            file.execute("CREATE TABLE numbers (number integer)")
            watcher = FileWatcher("watched", "default", self.wakeable)
            watcher.start()
            self.addCleanup(watcher.stop, 5)
            until(lambda: watcher.is_healthy)
            for number in range(10):
                seen = self.wakeable.polls
                file.execute("INSERT INTO numbers VALUES (?)", [number])
                until(lambda seen=seen: self.wakeable.polls > seen, timeout=10)

    @skipUnless(sys.platform == "linux", "only Linux has inotify")
    def test_a_commit_is_seen_by_the_write_alone(self):
        """Also one that is over only some time after the write was told of."""
        for mode in ("WAL", "DELETE"):
            with self.subTest(mode), mock.patch.object(watchers, "SILENCE", 300):
                self.name.unlink(missing_ok=True)
                self.check(mode)

    @skipUnless(sys.platform == "linux", "only Linux has inotify")
    def test_a_commit_some_time_after_its_write_is_seen(self):
        """The first check, at the write, finds nothing new; others follow."""
        check, seen = FileWatcher._look, []

        def late(watcher: FileWatcher) -> bool:
            # Each change of the version is found by the third check after the last one.
            seen.append(watcher)
            return len(seen) % 3 == 0 and check(watcher)

        silent = mock.patch.object(watchers, "SILENCE", 300)
        with silent, mock.patch.object(FileWatcher, "_look", late):
            self.check("WAL")

    def test_without_inotify_the_file_is_checked_all_the_time(self):
        """As on other systems, and where a user has used up what there is of it."""
        silent = mock.patch.object(watchers, "SILENCE", 300)
        for what in ("__init__", "watch"):
            spent = mock.patch.object(watchers.Writes, what, side_effect=OSError("no more"))
            with self.subTest(what), silent, spent:
                self.name.unlink(missing_ok=True)
                self.check("WAL")

    def test_without_inotify_the_file_is_checked_rarely_while_nothing_is_written(self):
        """Fifty times a second would cost an idle machine one percent of a processor."""
        pauses: list[float] = []

        class Stopping(threading.Event):
            """Notes the pauses."""

            def wait(self, timeout: float | None = None) -> bool:
                if timeout is not None:
                    pauses.append(timeout)
                return super().wait(timeout)

        spent = mock.patch.object(watchers.Writes, "__init__", side_effect=OSError("no more"))
        soon = mock.patch.object(watchers, "QUIET_AFTER", 0.05)
        with spent, soon, mock.patch.object(threading, "Event", Stopping):
            self.check("WAL")
            until(lambda: pauses[-1] == watchers.QUIET_INTERVAL)

        self.assertIn(watchers.FILE_INTERVAL, pauses)


class PollTests(RunnerTestCase):
    """Without any hint."""

    def test_a_row_is_found_by_polling(self):
        """Polling is the truth."""
        for watcher in self.runner._run._watchers:
            watcher.stop(5)
        id = make_task(task_path="tests.support.tasks.add")

        until(lambda: row(id).is_finished, timeout=10)


class SecondPollTests(RunnerTestCase):
    """What was enqueued while a process keeps quiet about it."""

    loop_delay = 300

    def test_a_second_poll_follows(self):
        """A row that is committed just after the poll is found by the next one, unannounced."""
        for watcher in self.runner._run._watchers:
            watcher.stop(5)
        until(lambda: not self.runner._run._fetcher.may_be_due)
        claim, polled = store.claim, threading.Event()

        def claim_and_tell(*args: Any, **kwargs: Any) -> Any:
            claims = claim(*args, **kwargs)
            polled.set()
            return claims

        with mock.patch.object(store, "claim", claim_and_tell):
            # Long enough for the row to be there on a machine that is busy.
            self.runner._run.wake(recheck_after=2)
            # A poll before then does not stand for it.
            self.runner._run.poll_now()
            self.assertTrue(polled.wait(10))
        id = make_task(task_path="tests.support.tasks.add")

        until(lambda: row(id).is_finished, timeout=10)


class NotifyTests(TransactionTestCase):
    """What enqueue() sends."""

    def setUp(self) -> None:
        if vendor() != "postgresql":
            self.skipTest("only PostgreSQL has NOTIFY")
        notify._notified.clear()
        wrapper = connections[DB]
        self.ear = wrapper.Database.connect(**wrapper.get_connection_params(), autocommit=True)
        self.addCleanup(self.ear.close)
        self.ear.execute(f"LISTEN {notify.CHANNEL}")

    def heard(self) -> int:
        return sum(1 for _ in self.ear.notifies(timeout=0.2))

    def test_many_enqueues_send_few_hints(self):
        """A process notifies at most once in 10 ms."""
        began = time.monotonic()
        for n in range(100):
            tasks.add.enqueue(n, 0)
        most = 1 + (time.monotonic() - began) / notify.NOTIFY_INTERVAL

        self.assertIn(self.heard(), range(1, int(most) + 2))

    def test_nothing_is_sent_before_the_commit(self):
        """A transaction holds no NOTIFY, and one that is rolled back sends none."""
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            self.assertEqual(0, self.heard())
        self.assertEqual(1, self.heard())

        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            transaction.set_rollback(True)
        self.assertEqual(0, self.heard())
