"""What a push service can do to those who enqueue: nothing."""

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock
from uuid import UUID

from django.db import transaction
from django.test import SimpleTestCase, TransactionTestCase, tag

from dbtasks.models import ScheduledTask
from dbtasks.push import Hint, NotSent, Push
from dbtasks.wakeup import guard, hints

from .. import tasks as plain_tasks
from ..support.hints import Recorder, forget_senders, sending, with_push
from ..support.waiting import until

# The most that a call may take, in seconds, on a machine that does other things as well.
LIMIT = 3.0


def some(count: int, backend: str = "default") -> list[Hint]:
    return [Hint(str(UUID(int=n)), backend, "default") for n in range(count)]


class Calling(Push):
    """Calls a function for each hint."""

    def __init__(self, call: Callable[[], Any], **attributes: Any) -> None:
        vars(self).update(attributes)
        self._call = call
        self.count = 0

    def send(self, hints: Sequence[Hint]) -> None:
        self.count += 1
        self._call()


@contextmanager
def server(answer: Callable[[socket.socket], Any]) -> Iterator[int]:
    """Accept connections on a port of this machine, and do that with each, until the end."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def request(port: int, tls: bool = False) -> None:
    """Send a request without any time limit, as a careless class would."""
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind("127.0.0.1", port)
    try:
        connection.request("POST", "/", b"{}")
        if connection.getresponse().status >= 400:
            raise NotSent("the service answered 500")
    finally:
        connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def fail_slowly(connection: socket.socket) -> None:
    connection.recv(4096)
    time.sleep(0.3)
    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")


class ServiceTests(TransactionTestCase):
    """Services that do not do what they should."""

    def test_many_savepoints_of_one_transaction(self):
        """Share the time of their commit."""
        free = threading.Event()
        self.addCleanup(free.set)
        push = Calling(free.wait)
        self.enterContext(mock.patch.object(guard, "CALL_TIMEOUT", 0.4))
        self.enterContext(mock.patch.object(guard, "COMMIT_TIMEOUT", 0.5))
        with with_push(push), sending(), self.assertLogs("dbtasks.push", "WARNING"):
            with transaction.atomic():
                for _ in range(3):
                    with transaction.atomic():
                        plain_tasks.add.enqueue(1, 2)
            self.assertEqual(2, push.count)

    def check(self, call: Callable[[], Any], words: str, calls: int = 3) -> None:
        """Enqueue so many times; each time in less than three seconds, then in no time."""
        push = Calling(call)
        if calls > 1:
            # On a busy machine a failure may be slow, which would be enough by itself.
            self.enterContext(mock.patch.object(guard, "SLOW", 60.0))
        with with_push(push), sending(), self.assertLogs("dbtasks.push", "WARNING") as logs:
            for _ in range(calls):
                began = time.monotonic()
                plain_tasks.add.enqueue(1, 2)
                self.assertLess(time.monotonic() - began, LIMIT)
            self.assertEqual(calls, push.count)
            self.assertLess(self.quickest(push), 0.001)
            plain_tasks.add.enqueue(1, 2)

        self.assertEqual(calls, push.count)
        self.assertEqual(calls + 1, ScheduledTask.objects.due().count())
        [said] = logs.output
        self.assertIn(f"1 hint of 'default' could not be sent: {words}. A sweep", said)

    def quickest(self, push: Push) -> float:
        """Return the seconds that a hint takes now, at best."""
        found = []
        for _ in range(20):
            began = time.perf_counter()
            self.assertEqual(0, hints.tell(push, some(1)))
            found.append(time.perf_counter() - began)
        return min(found)

    def test_a_service_that_accepts_and_never_answers(self):
        """The first call is given up after two seconds; the next user does not wait."""
        with server(lambda connection: None) as port:
            self.check(lambda: request(port), "no answer within 2 seconds", calls=1)

    def test_a_service_that_refuses(self):
        """Nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.check(lambda: request(port), "ConnectionRefusedError: Connection refused")

    def test_a_service_that_resets(self):
        """The connection ends before the answer."""
        with server(reset) as port:
            push = Calling(lambda: request(port))
            with sending(), self.assertLogs("dbtasks.push", "WARNING"):
                self.assertEqual(0, hints.tell(push, some(3)))

    def test_a_service_that_answers_500_slowly(self):
        """As a failure like any other, in the words of the class."""
        with server(fail_slowly) as port:
            self.check(lambda: request(port), "the service answered 500")

    def test_an_error_of_tls(self):
        """The server does not speak it."""
        with server(fail_slowly) as port:
            push = Calling(lambda: request(port, tls=True))
            with sending(), self.assertLogs("dbtasks.push", "WARNING") as logs:
                self.assertEqual(0, hints.tell(push, some(1)))
        self.assertIn("SSLError", logs.output[0])
        self.assertTrue(issubclass(ssl.SSLError, OSError))

    def test_names_that_are_not_resolved(self):
        """At once, or never."""
        error = socket.gaierror(-2, "Name or service not known")
        with mock.patch.object(socket, "getaddrinfo", side_effect=error):
            self.check(lambda: request(1), "gaierror: Name or service not known")
        free = threading.Event()
        self.addCleanup(free.set)
        with mock.patch.object(socket, "getaddrinfo", side_effect=lambda *_, **__: free.wait()):
            began = time.monotonic()
            with sending(), self.assertLogs("dbtasks.push", "WARNING"):
                hints.tell(Calling(lambda: request(1)), some(1))
            self.assertLess(time.monotonic() - began, LIMIT)

    def test_what_a_client_library_may_raise(self):
        """Whatever it is, the caller goes on."""
        for error in (SystemExit(3), KeyboardInterrupt(), MemoryError(), ZeroDivisionError()):

            def fail(error: BaseException = error) -> None:
                raise error

            with (
                self.subTest(error),
                sending(),
                self.assertLogs("dbtasks.push", "WARNING") as logs,
            ):
                self.assertEqual(0, hints.tell(Calling(fail), some(1)))
                self.assertIn(f"sent: {type(error).__name__}.", logs.output[0])


class TimeTests(SimpleTestCase):
    """The time that hints take."""

    def setUp(self) -> None:
        self.enterContext(sending())

    def tell(self, push: Push, count: int, **options: Any) -> tuple[int, float]:
        began = time.monotonic()
        sent = hints.tell(push, some(count), **options)
        return sent, time.monotonic() - began

    def test_calls_run_side_by_side(self):
        """Eight at a time."""
        together = threading.Barrier(guard.MAX_THREADS)
        push = Calling(lambda: together.wait(10))

        self.assertEqual(16, self.tell(push, 16)[0])

    def test_all_of_one_commit_together(self):
        """What is too much for the time is not sent, and nothing is sent afterwards."""
        push = Calling(lambda: time.sleep(0.9))
        with self.assertLogs("dbtasks.push", "WARNING") as logs:
            sent, seconds = self.tell(push, 100)
        self.assertEqual(24, sent)
        self.assertLess(seconds, LIMIT)
        self.assertIn("76 hints of 'default' could not be sent: the service is too", logs.output[0])
        count = push.count
        self.assertLessEqual(count, 32)
        # A service that is slow has not failed.
        self.assertEqual(1, self.tell(push, 1)[0])

        self.assertEqual(count + 1, push.count)

    def test_threads_that_hang_are_not_replaced_without_end(self):
        """Eight at most; when they go on, they are used again."""
        free = threading.Event()
        self.addCleanup(free.set)
        push = Calling(free.wait)
        self.enterContext(mock.patch.object(guard, "CALL_TIMEOUT", 0.3))
        with self.assertLogs("dbtasks.push", "WARNING"):
            for _ in range(2):
                sent, seconds = self.tell(push, 30)
                self.assertEqual(0, sent)
                self.assertLess(seconds, LIMIT)
                self.rested()
        self.assertEqual(guard.MAX_THREADS, self.threads())
        free.set()
        until(lambda: self.tell(Recorder(), 1)[0] or self.rested())
        # What was given up before it began is not sent later.
        self.assertEqual(guard.MAX_THREADS, push.count)
        self.assertLessEqual(self.threads(), guard.MAX_THREADS)

    def test_a_service_that_hangs_for_ever(self):
        """When all threads hang, nobody waits; what could not begin is forgotten."""
        free = threading.Event()
        self.addCleanup(free.set)
        push = Calling(free.wait)
        self.enterContext(mock.patch.object(guard, "CALL_TIMEOUT", 0.1))
        with self.assertLogs("dbtasks.push", "WARNING"):
            self.tell(push, 30)
            self.rested()
            with mock.patch.object(guard.Threads, "submit") as submit:
                self.assertEqual(0, self.tell(push, 1)[0])
        submit.assert_not_called()
        self.assertEqual(guard.MAX_THREADS, push.count)

        free.set()
        until(lambda: self.tell(Recorder(), 1)[0])

    def test_a_commit_for_which_no_thread_is_free(self):
        """Counts as a failure that was slow, and leaves nothing behind."""
        free = threading.Event()
        self.addCleanup(free.set)
        push = Calling(free.wait)
        sender = guard.sender_of("default")
        self.enterContext(mock.patch.object(guard, "SLOW", 0.05))
        with self.assertLogs("dbtasks.push", "WARNING"):
            self.tell(push, guard.MAX_THREADS, end=time.monotonic() + 0.1)
            until(lambda: push.count == guard.MAX_THREADS)
            self.assertFalse(sender._breaker.is_open)
            self.tell(push, 3, end=time.monotonic() + 0.1)
        self.assertTrue(sender._breaker.is_open)
        self.assertEqual(0, len(sender._threads._jobs))

        free.set()
        until(lambda: not sender._threads.began)
        self.assertEqual(guard.MAX_THREADS, push.count)

    def test_threads_end_when_there_is_nothing_to_send(self):
        """And others come for the next hint."""
        for _ in range(2):
            self.assertEqual(20, self.tell(Recorder(), 20)[0])
            until(lambda: not self.threads())

    def threads(self) -> int:
        return guard.sender_of("default")._threads._count

    def rested(self) -> None:
        """Let the rest after failures be over."""
        guard.sender_of("default")._breaker._open_until = 0.0

    def test_no_thread_can_be_started(self):
        """At the end of the process, for example."""
        error = RuntimeError("can't create new thread at interpreter shutdown")
        with (
            mock.patch.object(threading.Thread, "start", side_effect=error),
            self.assertLogs("dbtasks.push", "WARNING") as logs,
        ):
            sent, seconds = self.tell(Recorder(), 5)

        self.assertEqual(0, sent)
        self.assertLess(seconds, 1)
        self.assertIn("RuntimeError", logs.output[0])

    def test_savepoints_share_the_time_of_their_commit(self):
        """However many announcements there are, `end` is one."""
        free = threading.Event()
        self.addCleanup(free.set)
        push = Calling(free.wait)
        with self.assertLogs("dbtasks.push", "WARNING"):
            sent, seconds = self.tell(push, 1, end=time.monotonic() + 0.2)
        self.assertLess(seconds, 1)
        self.assertEqual((0, 1), (sent, push.count))

        with mock.patch.object(guard.Threads, "submit") as submit:
            self.tell(push, 1, end=time.monotonic() - 1)
        submit.assert_not_called()

    def test_batches(self):
        """As many hints in one call as the service takes."""
        push = Recorder(batch=10)
        self.assertEqual(25, self.tell(push, 25)[0])

        self.assertEqual([5, 10, 10], sorted(push.calls))


class BreakerTests(SimpleTestCase):
    """After three failures in a row."""

    def setUp(self) -> None:
        self.enterContext(sending())
        self.fails = True
        self.push = Calling(self.call)

    def call(self) -> None:
        if self.fails:
            raise OSError

    def test_nothing_is_tried_for_half_a_minute(self):
        """Then once; if that fails, it rests again; if not, all is forgotten."""
        with mock.patch.object(guard.time, "monotonic", side_effect=self.clock):
            self.now = 1000.0
            with self.assertLogs("dbtasks.push", "WARNING"):
                for wait, calls in ((0, 3), (29.9, 3), (0.2, 4), (29.9, 4), (0.2, 5)):
                    self.now += wait
                    for _ in range(5):
                        hints.tell(self.push, some(1))
                    self.assertEqual(calls, self.push.count)
            self.now += 30.1
            self.fails = False
            self.assertEqual(1, hints.tell(self.push, some(1)))
            self.fails = True
            for _ in range(5):
                hints.tell(self.push, some(1))
            self.assertEqual(9, self.push.count)

    def test_a_slow_failure_is_followed_by_a_short_rest(self):
        """Nobody else waits for it; a service that had to start is not left alone for long."""
        self.push = Calling(lambda: self.fail_after(1.5))
        self.now = 1000.0
        with (
            mock.patch.object(guard.time, "monotonic", side_effect=self.clock),
            self.assertLogs("dbtasks.push", "WARNING"),
        ):
            for wait, calls in ((0, 1), (4.9, 1), (0.2, 2), (5.1, 3), (5.1, 3), (25, 4)):
                self.now += wait
                for _ in range(5):
                    hints.tell(self.push, some(1))
                self.assertEqual(calls, self.push.count)

    def fail_after(self, seconds: float) -> None:
        self.now += seconds
        raise OSError

    def clock(self) -> float:
        return self.now

    def test_two_failures_and_a_success(self):
        """Are not three in a row."""
        with self.assertLogs("dbtasks.push", "WARNING"):
            for fails in (True, True, False, True, True, False, True):
                self.fails = fails
                hints.tell(self.push, some(1))

        self.assertEqual(7, self.push.count)

    def test_a_large_commit_stops_early(self):
        """The rest of it is not tried."""
        with self.assertLogs("dbtasks.push", "WARNING"):
            self.assertEqual(0, hints.tell(self.push, some(100)))

        self.assertLess(self.push.count, 3 + guard.MAX_THREADS)

    def test_each_backend_has_its_own(self):
        """One that fails takes nothing from another."""
        with self.assertLogs("dbtasks.push", "WARNING"):
            for _ in range(4):
                hints.tell(self.push, some(1))
        other = Recorder()

        self.assertEqual(1, hints.tell(other, some(1, "other")))


class WarningTests(SimpleTestCase):
    """What is logged."""

    def setUp(self) -> None:
        self.enterContext(sending())

    def test_one_warning_a_minute(self):
        """With the number of hints that were not sent since the last."""
        now = [1000.0]
        push = Calling(lambda: 1 / 0)
        with (
            mock.patch.object(guard.time, "monotonic", side_effect=lambda: now[0]),
            self.assertLogs("dbtasks.push", "WARNING") as logs,
        ):
            for _ in range(1000):
                hints.tell(push, some(2))
            now[0] += 61
            hints.tell(push, some(1))

        counts = [record.getMessage().partition(" hint")[0] for record in logs.records]
        self.assertEqual(["2", "1999"], counts)

    def test_a_success_says_what_is_left_to_say(self):
        """Hints that were lost during the rest are counted as well."""
        now = [1000.0]
        with mock.patch.object(guard.time, "monotonic", side_effect=lambda: now[0]):
            with self.assertLogs("dbtasks.push", "WARNING"):
                for _ in range(10):
                    hints.tell(Calling(lambda: 1 / 0), some(1))
            now[0] += 61
            with self.assertLogs("dbtasks.push", "WARNING") as logs:
                self.assertEqual(1, hints.tell(Recorder(), some(1)))
            self.assertIn("9 hints of 'default'", logs.output[0])

    def test_no_secret_is_logged(self):
        """Errors of client libraries contain headers and URLs."""
        secret = "tok-3141592653"

        def fail() -> None:
            http.client.HTTPConnection("x").putheader("Authorization", f"Bearer {secret}\n")

        errors: list[Any] = [
            fail,
            lambda: {}[secret],
            lambda: os.stat(f"/no/such/{secret}"),
        ]
        with self.assertLogs("dbtasks", "DEBUG") as logs:
            for error in errors:
                hints.tell(Calling(error, token=secret), some(1))
                forget_senders()

        self.assertNotIn(secret, "".join(logs.output))
        self.assertIn("FileNotFoundError: No such file or directory", "".join(logs.output))


@tag("processes")
class ForkTests(SimpleTestCase):
    """A process that was forked after the first hint: gunicorn --preload, uWSGI."""

    def test_the_child_has_threads_of_its_own(self):
        """And a breaker of its own."""
        code = (
            "import os, time; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'\n"
            "import django; django.setup()\n"
            "from dbtasks.push import Hint, Push\n"
            "from dbtasks.wakeup import hints\n"
            "class Mine(Push):\n"
            "    fails = False\n"
            "    def send(self, hints):\n"
            "        if self.fails: raise OSError\n"
            "push, ten = Mine(), [Hint(str(n), 'default', 'default') for n in range(10)]\n"
            "print(hints.tell(push, ten), flush=True)\n"
            "push.fails = True\n"
            "print(hints.tell(push, ten), flush=True)\n"
            "push.fails = False\n"
            "print(hints.tell(push, ten), flush=True)\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    began = time.monotonic()\n"
            "    print(hints.tell(push, ten), time.monotonic() - began < 1, flush=True)\n"
            "    os._exit(0)\n"
            "print(os.waitpid(child, 0)[1])\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"DBTASKS_PUSH": "on"},
            capture_output=True,
            text=True,
            timeout=60,
        )

        self.assertEqual(["10", "0", "0", "10 True", "0"], done.stdout.splitlines(), done.stderr)
