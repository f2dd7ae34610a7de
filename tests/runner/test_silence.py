"""Connections on which nothing comes back, and threads that go on when something is raised."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from django.db import connections
from django.test import TransactionTestCase

from dbtasks import Periodic, store
from dbtasks.db import service, timeouts
from dbtasks.db.service import Pauses, RoundService, Service
from dbtasks.db.timeouts import bounded_connect, call_timeout
from dbtasks.models import PeriodicTask, ScheduledTask
from dbtasks.runner import Runner, scheduler
from dbtasks.runner.scheduler import Scheduler
from dbtasks.wakeup import watchers

from ..support.processes import database_url
from ..support.proxy import Proxy
from ..support.rows import DB, vendor
from ..support.schedules import schedules
from ..support.waiting import until
from ..tasks import add

REMEMBER = "tests.support.tasks.remember"


class QuietTestCase(TransactionTestCase):
    """Says nothing of the errors that are wanted."""

    def setUp(self) -> None:
        for name in ("dbtasks", "dbtasks.runner", "dbtasks.wakeup"):
            logger = logging.getLogger(name)
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)

    def begin(self, **options: Any) -> Runner:
        """Start a runner in a thread; return it once it is ready."""
        runner = Runner(workers=2, **options)
        thread = threading.Thread(target=runner.run)
        thread.start()
        self.addCleanup(thread.join, 30)
        self.addCleanup(runner.stop)
        self.assertTrue(runner.ready.wait(30))
        return runner


class SilentNetworkTests(QuietTestCase):
    """A network between a runner and its server."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "sqlite":
            self.skipTest("SQLite has no network")
        self.proxy = Proxy(database_url())
        self.addCleanup(self.proxy.close)
        parts = urlsplit(self.proxy.url)
        place = {"HOST": parts.hostname, "PORT": str(parts.port)}
        own = connections.settings[DB]
        options = own["OPTIONS"] | ({"sslmode": "disable"} if vendor() == "postgresql" else {})
        through = {DB: own | place | {"OPTIONS": options}}
        self.enterContext(mock.patch.dict(connections.settings, through))
        self.enterContext(mock.patch.object(timeouts, "CONNECT_TIMEOUT", 1))

    @contextmanager
    def in_thread(self) -> Iterator[list[Any]]:
        """Let the function that is appended run in a thread, which goes by way of the proxy."""
        wanted: list[Any] = []
        yield wanted
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with bounded_connect(DB):
                    wanted[0]()
            except BaseException as error:
                failed.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        if failed:
            raise failed[0]

    def test_an_idle_connection_that_was_forgotten_is_replaced_at_once(self):
        """The statement that comes first after hours neither waits for ten seconds nor fails."""
        took: list[float] = []

        def work() -> None:
            self.ask()
            self.proxy.forget()
            with mock.patch.object(timeouts, "PROBE_AFTER", 0.0):
                began = time.monotonic()
                self.ask()
                took.append(time.monotonic() - began)

        with self.in_thread() as wanted:
            wanted.append(work)

        self.assertLess(took[0], timeouts.CALL_TIMEOUT - 2)

    def ask(self) -> None:
        with call_timeout(connections[DB]), connections[DB].cursor() as cursor:
            cursor.execute("SELECT 1")

    def test_the_system_asks_whether_the_server_is_there(self):
        """TCP keepalives, with an end, on each connection of a runner."""
        found: list[int] = []

        def work() -> None:
            self.ask()
            with socket.socket(fileno=socket.dup(connections[DB].connection.fileno())) as end:
                found.append(end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                found.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
                found.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

        with self.in_thread() as wanted:
            wanted.append(work)

        self.assertEqual([1, timeouts.KEEPALIVE_IDLE, 10_000], found)

    def test_every_thread_goes_on_after_a_silence(self):
        """Schedules fire, outcomes are written and wake-ups arrive again."""
        limit = mock.patch.object(call_timeout.__init__, "__defaults__", (0.5,))
        with (
            limit,
            mock.patch.object(watchers, "CHECK_INTERVAL", 0.5),
            mock.patch.object(scheduler, "LOOK_INTERVAL", 0.2),
            schedules({REMEMBER: Periodic("1s", [1])}),
        ):
            runner = self.begin()
            until(lambda: ScheduledTask.objects.successful().exists(), "The first tick")
            listeners = runner._run._watchers
            self.proxy.is_hole.set()
            until(lambda: not any(each.is_healthy for each in listeners), "The silence")
            before = add.enqueue(1, 2)
            self.proxy.is_hole.clear()
            until(lambda: all(each.is_healthy for each in listeners), "Wake-ups")
            self.assertEqual(3, before.wait(30).return_value)
            last = PeriodicTask.objects.get().last_tick
            until(lambda: PeriodicTask.objects.get().last_tick > last, "The next tick")


class Raising(Service):
    """Raises each error once, then works."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__("raising")
        self.errors, self.works = list(errors), threading.Event()

    def work(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.works.set()


class Rounds(RoundService):
    """Raises in its first rounds, and counts the others."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__("rounds", Pauses(0.01, 0.01), DB)
        self.errors, self.works = list(errors), threading.Event()

    def round(self) -> float:
        if self.errors:
            raise self.errors.pop(0)
        self.works.set()
        return 60.0

    def failed(self, error: Exception) -> None:
        raise MemoryError


class ServiceTests(QuietTestCase):
    """Threads of dbtasks in which something is raised."""

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.object(service, "REVIVAL_PAUSE", 0.01))

    def test_whatever_is_raised_the_thread_goes_on(self):
        """Also what is no Exception, and what is raised while an error is handled."""
        for made in (Raising, Rounds):
            with self.subTest(made.__name__):
                one: Any = made(SystemExit(), GeneratorExit(), MemoryError(), ValueError())
                one.start()
                self.addCleanup(one.stop, 5)
                self.assertTrue(one.works.wait(10))

    def test_a_thread_that_has_died_is_replaced(self):
        """Nothing in it could help, as when memory is out in the guard itself."""
        one = Raising(SystemExit())
        with (
            mock.patch.object(service, "discard_all", side_effect=MemoryError),
            mock.patch.object(threading, "excepthook"),
        ):
            one.start()
            until(lambda: not one.is_alive)
        self.assertTrue(one.revive())
        self.assertTrue(one.works.wait(10))
        until(lambda: not one.is_alive)

        self.assertFalse(one.revive(), "It has ended as it should.")

    def test_a_watcher_goes_on_after_an_error(self):
        """Until then it does not say that it is healthy."""
        if vendor() == "mysql":
            self.skipTest("MySQL has no wake-ups")
        if vendor() == "postgresql":
            where, name = watchers.Listener, "_wait_for"
        else:
            where, name = watchers.FileWatcher, "_look"
        runner = self.begin()
        [watcher] = runner._run._watchers
        until(lambda: watcher.is_healthy, "The first time")
        with mock.patch.object(where, name, side_effect=RuntimeError):
            # What it waits for comes.
            add.enqueue(1, 2)
            until(lambda: not watcher.is_healthy, "The error")
        until(lambda: watcher.is_healthy, "The second time")


class SchedulerTests(QuietTestCase):
    """Schedules that keep to themselves."""

    def test_a_function_that_exits_stops_no_other_schedule(self):
        """Nor the thread."""

        def leave() -> Any:
            raise SystemExit

        with (
            mock.patch.object(scheduler, "LOOK_INTERVAL", 0.05),
            schedules(
                {REMEMBER: [Periodic("1s", leave, key="bad"), Periodic("1s", [1], key="good")]}
            ),
        ):
            self.begin()
            until(lambda: self.fired("good") >= 2, "Two ticks")

        self.assertEqual(0, self.fired("bad"))

    def fired(self, key: str) -> int:
        return ScheduledTask.objects.filter(schedule_key=key).count()

    def test_a_slow_function_delays_no_other_schedule(self):
        """It fires when it is ready."""
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def wait() -> Any:
            go_on.wait(30)
            return [1]

        with (
            mock.patch.object(scheduler, "LOOK_INTERVAL", 0.05),
            mock.patch.object(scheduler, "MAKE_TIMEOUT", 0.05),
            schedules(
                {REMEMBER: [Periodic("1s", wait, key="slow"), Periodic("1s", [1], key="quick")]}
            ),
        ):
            self.begin()
            until(lambda: self.fired("quick") >= 3, "Three ticks")
            self.assertEqual(0, self.fired("slow"))
            go_on.set()
            until(lambda: self.fired("slow"), "The slow one")

    def test_many_that_fail_starve_no_other(self):
        """They are longest due, and one peek shows so many."""

        def fail() -> Any:
            raise ValueError

        failing = [Periodic("1d", fail, key=f"bad{n}") for n in range(5)]
        with (
            mock.patch.object(store.periodic, "BATCH", 4),
            schedules({REMEMBER: [*failing, Periodic("1d", [1], key="good")]}) as own,
        ):
            one = Scheduler(own)
            one.round()
            now = store.now(DB)
            rows = PeriodicTask.objects
            rows.update(next_tick=now.replace(year=2020))
            rows.filter(key="good").update(next_tick=now.replace(year=2021))
            one.catch_up()

        self.assertEqual(1, self.fired("good"))
