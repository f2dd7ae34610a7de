"""Wake-ups of runners by Redis, with a server of the test's own."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest import TestCase, mock

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings

from dbtasks import checks
from dbtasks.contrib import redis
from dbtasks.contrib.redis import Redis
from dbtasks.models import ScheduledTask
from dbtasks.options import parse
from dbtasks.waker import Waker
from dbtasks.wakeup import guard, notify, publishing

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase
from ..support.redis_server import PASSWORD, RedisServer
from ..support.rows import DB, vendor
from ..support.waiting import until
from ..tasks import add

CHANNEL = "dbtasks:default"


@contextmanager
def publishing_by(waker: Waker) -> Iterator[None]:
    """Let this process publish by that waker, although it runs tests."""
    tasks = backend(OPTIONS={"wakeup": waker})
    is_test = mock.patch.object(publishing, "is_test_environment", return_value=False)
    with override_settings(TASKS=tasks), is_test:
        yield


class RedisTestCase(TestCase):
    """A server, and a place for its address."""

    def setUp(self) -> None:
        super().setUp()
        self.server = RedisServer()
        self.addCleanup(self.server.close)


class RunnerTests(RedisTestCase, ProcessTestCase):
    """A runner in another process, which would poll once a minute."""

    def start_runner(self) -> Child:
        """Start it; return once it listens."""
        child = self.start(
            *("taskrunner", "--delay", "60", "--no-periodic"),
            DJANGO_SETTINGS_MODULE="tests.support.redis_settings",
            TEST_REDIS=self.server.url,
        )
        until(self.is_heard, "The runner's subscription")
        return child

    def is_heard(self) -> bool:
        """Tell whether the runner listens."""
        return self.server.listeners(CHANNEL) == 1

    def assert_runs(self) -> None:
        """Enqueue a task; fail unless it has run long before the next poll."""
        with publishing_by(Redis(self.server.url)):
            result = add.enqueue(1, 2)
        row = ScheduledTask.objects.filter(pk=result.id, status="SUCCESSFUL")
        until(row.exists, "The end of the task", timeout=20)

    def test_it_picks_up_a_row_at_once(self):
        """Also where the database itself would tell it nothing."""
        self.start_runner()

        self.assert_runs()

    def test_it_listens_again_after_a_restart_and_polls_meanwhile(self):
        """It was not told of the second task, and has not claimed one before the first."""
        child = self.start_runner()
        self.server.kill()
        self.server.start()
        until(self.is_heard, "The runner's subscription")

        self.assert_runs()
        self.server.kill()
        self.assert_runs()
        self.assertNotIn(PASSWORD, child.said)


class PublishTests(RedisTestCase, TransactionTestCase):
    """What enqueue() sends."""

    def setUp(self) -> None:
        super().setUp()
        self.heard: list[float] = []
        self.is_over = threading.Event()
        listening = threading.Event()
        self.redis = Redis(self.server.url)

        def listen() -> None:
            with self.redis.listen("default") as hears:
                listening.set()
                while not self.is_over.is_set():
                    if hears(0.05):
                        self.heard.append(time.monotonic())

        thread = threading.Thread(target=listen)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.is_over.set)
        self.assertTrue(listening.wait(10))
        self.enterContext(publishing_by(self.redis))

    def test_after_the_commit(self):
        """Not before, and not after a rollback."""
        with transaction.atomic():
            add.enqueue(1, 2)
            self.assertEqual(0, self.published())
        until(lambda: len(self.heard) == 1)

        with transaction.atomic():
            add.enqueue(1, 2)
            transaction.set_rollback(True)
        self.assertEqual(1, self.published())

    def published(self) -> int:
        """Return how many messages the server has been given."""
        stats = self.server.command("info", "commandstats")
        return int(stats.get("cmdstat_publish", {"calls": 0})["calls"])

    def test_many_in_a_row_send_few(self):
        """A listener claims again a moment after each."""
        with (
            mock.patch.object(notify, "NOTIFY_INTERVAL", 300),
            mock.patch.dict(notify._notified, clear=True),
            mock.patch.object(self.redis, "publish") as publish,
        ):
            add.enqueue_many([((n, 1), {}) for n in range(5)])
            for _ in range(5):
                add.enqueue(1, 2)

        publish.assert_called_once_with("default")

    def test_one_client_is_kept(self):
        """A connection for each commit would cost more than the commit."""
        for _ in range(5):
            self.redis.publish("default")

        self.assertEqual(5, self.published())
        # One for publishing, one that listens, one that asks.
        self.assertEqual(3, len(self.server.command("client_list")))


class AwayTests(TransactionTestCase):
    """A server that cannot be reached."""

    def check(self, url: str) -> None:
        """Enqueue more often than the guard tries."""
        waker = Redis(url)
        publish = self.enterContext(
            mock.patch.object(waker, "publish", mock.Mock(wraps=waker.publish))
        )
        # A busy machine may take long to import redis-py: that alone is no slow failure here.
        self.enterContext(mock.patch.object(guard, "SLOW", 60.0))
        with publishing_by(waker), self.assertLogs("dbtasks.wakeup", "WARNING") as logs:
            took = [self.seconds_of_one(n) for n in range(8)]

        self.assertEqual(8, ScheduledTask.objects.count())
        # A tenth of a second is the limit of Redis(). A busy machine may be late, not each time.
        self.assertLess(min(took[: guard.MAX_FAILURES]), 0.5)
        self.assertEqual(guard.MAX_FAILURES, publish.call_count)
        self.assertEqual(1, len(logs.output))
        self.assertNotIn("hidden", str(logs.output) + repr(waker))

    def seconds_of_one(self, n: int) -> float:
        """Enqueue once the last wake-up is long ago; return how long that takes."""
        with mock.patch.dict(notify._notified, clear=True):
            began = time.monotonic()
            add.enqueue(n, 1)
            return time.monotonic() - began

    def test_nobody_listens_there(self):
        """The connection is refused."""
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        self.check(f"redis://somebody:hidden@127.0.0.1:{port}")

    def test_the_server_says_nothing(self):
        """It takes the connection, as a server that hangs does."""
        with closing(socket.create_server(("127.0.0.1", 0))) as silent:
            self.check(f"redis://somebody:hidden@127.0.0.1:{silent.getsockname()[1]}")

    def test_it_is_tried_again_later(self):
        """After the pause, and then once."""
        waker = mock.Mock(spec=Redis("redis://127.0.0.1"))
        waker.publish.side_effect = OSError
        is_test = mock.patch.object(publishing, "is_test_environment", return_value=False)
        with is_test, self.assertLogs("dbtasks.wakeup", "WARNING"):
            for _ in range(5):
                publishing.publish(waker, "default")
            self.assertEqual(3, waker.publish.call_count)
            later = time.monotonic() + guard.REST + 1
            with mock.patch.object(guard.time, "monotonic", return_value=later):
                for _ in range(5):
                    publishing.publish(waker, "default")

        self.assertEqual(4, waker.publish.call_count)

    def test_after_one_slow_failure_it_rests(self):
        """Looking up a name has no limit, so each further commit would wait as long."""
        waker = mock.Mock(spec=Redis("redis://127.0.0.1"))
        clock = self.enterContext(mock.patch.object(guard.time, "monotonic", return_value=0.0))

        def look_up(backend: str) -> None:
            clock.return_value += 8
            raise OSError

        waker.publish.side_effect = look_up
        is_test = mock.patch.object(publishing, "is_test_environment", return_value=False)
        with is_test, self.assertLogs("dbtasks.wakeup", "WARNING") as logs:
            for _ in range(3):
                publishing.publish(waker, "default")
            self.assertEqual(1, waker.publish.call_count)
            clock.return_value += guard.SLOW_REST
            publishing.publish(waker, "default")

        self.assertEqual(2, waker.publish.call_count)
        self.assertIn("not sent for 5 s", logs.output[0])


class SilenceTests(SimpleTestCase):
    """A subscription on which nothing arrives."""

    def test_a_server_that_went_away_silently_is_noticed(self):
        """It is asked once, and has some seconds to answer."""
        clock = self.enterContext(mock.patch.object(redis.time, "monotonic", return_value=0.0))
        messages = mock.Mock()
        messages.get_message.return_value = None
        subscription = redis.Subscription(messages)

        clock.return_value = redis.SILENCE + 0.1
        for _ in range(2):
            self.assertFalse(subscription.hears(0))
        messages.ping.assert_called_once_with()
        messages.get_message.return_value = {"type": "pong"}
        self.assertFalse(subscription.hears(0))
        messages.get_message.return_value = None
        clock.return_value += redis.SILENCE + 0.1
        self.assertFalse(subscription.hears(0))
        self.assertEqual(2, messages.ping.call_count)
        clock.return_value += redis.ANSWER
        with self.assertRaises(TimeoutError):
            subscription.hears(0)


class OptionTests(SimpleTestCase):
    """OPTIONS["wakeup"]"""

    def found(self, waker: Any, **database: Any) -> list[str]:
        """Return the ids of what the checks say."""
        with (
            override_settings(TASKS=backend(OPTIONS={"wakeup": waker})),
            mock.patch.dict(connections[DB].settings_dict, database),
        ):
            return [str(message.id) for message in checks.check_backends()]

    def test_a_class_and_a_text_are_not_valid(self):
        """Each error says what is."""
        for value, said in {
            Redis: "Redis is a class. Use an object: Redis(…).",
            "redis://": "a value of type str is not a waker. Use an object such as "
            "dbtasks.contrib.redis.Redis('redis://127.0.0.1:6379'), or None.",
        }.items():
            with self.subTest(value), self.assertRaisesMessage(ImproperlyConfigured, said):
                parse("default", {"wakeup": value})
        self.assertIsNone(parse("default", {"wakeup": None}).wakeup)

    def test_where_the_database_wakes_runners_itself_it_gains_nothing(self):
        """It does for MySQL and MariaDB, and behind a pooler that shares sessions."""
        waker = Redis("redis://127.0.0.1")
        gains = vendor() == "mysql"
        self.assertEqual(not gains, "dbtasks.W026" in self.found(waker))
        is_needed = vendor() != "sqlite"
        found = self.found(waker, DISABLE_SERVER_SIDE_CURSORS=True)
        self.assertEqual(not is_needed, "dbtasks.W026" in found)
        self.assertNotIn("dbtasks.W026", self.found(None))

    def test_a_url_of_something_else(self):
        """Its password is not shown."""
        with override_settings(TASKS=backend(OPTIONS={"wakeup": Redis("http://me:hidden@x/")})):
            messages = [m for m in checks.check_backends() if m.id == "dbtasks.E024"]

        self.assertEqual(1, len(messages))
        self.assertIn("Redis('http://x')", messages[0].msg)
        self.assertNotIn("hidden", str(messages))

    def test_no_part_of_a_password_is_shown(self):
        """Nor of a user: nothing is, unless scheme and host are certain."""
        for url in (
            *("user:secret@host:6379", ":secret@host:6379", "redis://:secret/ss@host"),
            *("redis://:secret#ss@host", "redis://secret:12/ss@host", "redis://secret?x@host"),
            *("redis://host/0?password=se@secret", "redis://u:p@[secret", "redis://u:p@secret x"),
            *("unix://secret@/run/x.sock", "", "redis://", "redis://u:p\n@secret", None),
        ):
            with self.subTest(url):
                waker = Redis(url)  # type: ignore[arg-type]
                self.assertEqual("Redis('…')", repr(waker))
                self.assertNotIn("secret", str(list(waker.check("default"))))
        for url, place in {
            "redis://127.0.0.1": "redis://127.0.0.1",
            "rediss://me:sec@ret@[::1]:6379/0?password=secret": "rediss://[::1]:6379",
            "redis://:secret@h.example:6379#secret": "redis://h.example:6379",
        }.items():
            self.assertEqual(f"Redis({place!r})", repr(Redis(url)))

    def test_the_package_is_missing(self):
        """The check names the extra, and imports nothing."""
        with mock.patch.object(checks, "find_spec", return_value=None):
            self.assertIn("dbtasks.E022", self.found(Redis("redis://127.0.0.1")))

    def test_in_a_test_nothing_is_published(self):
        """Also with the settings of production."""
        waker = mock.Mock(spec=Redis("redis://127.0.0.1"))
        publishing.publish(waker, "default")
        waker.publish.assert_not_called()
