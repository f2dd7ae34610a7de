"""From enqueue() through the service and an HTTP server to the row's end."""

import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any
from unittest import mock

from django.test import LiveServerTestCase
from django.utils import timezone

import dbtasks
from dbtasks import checks
from dbtasks.contrib.cloudtasks import OIDC, CloudTasks
from dbtasks.contrib.http import Bearer, journal
from dbtasks.models import ScheduledTask, Worker
from dbtasks.push import HEADER
from tests import tasks
from tests.support.cloudtasks import CloudTasksService
from tests.support.hints import sending, with_push
from tests.support.loopback import Loopback
from tests.support.mounts import TOKEN, mounted
from tests.support.tokens import EMAIL, Keys, Signer, needs_google
from tests.support.waiting import until

LATER = timedelta(hours=1)


@needs_google
class RoundTripTestCase(LiveServerTestCase):
    """A live server whose endpoints the service calls. Nothing else runs tasks."""

    knobs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    backend: dict[str, Any] = {}

    def setUp(self) -> None:
        from google.auth.credentials import AnonymousCredentials

        tasks.ran.clear()
        self.service = self.enterContext(CloudTasksService(**self.knobs))
        self.push = CloudTasks(
            project="shop",
            location="europe-west1",
            url=self.live_server_url,
            endpoint=self.service.endpoint,
            credentials=AnonymousCredentials(),
            **self.options,
        )
        self.enterContext(mounted(auth=self.credentials()))
        self.enterContext(with_push(self.push, **self.backend))
        self.enterContext(sending())
        # It says each thing once a minute.
        self.enterContext(mock.patch.object(journal, "_journal", journal.Journal()))

    def credentials(self) -> list[Any]:
        return [Bearer(TOKEN)]

    def wait(self) -> None:
        """Return when the service has nothing left to deliver."""
        until(self.service.is_idle, "the last delivery")
        self.assertEqual([], self.service.faults)

    def statuses(self) -> list[int | None]:
        return [delivery.status for delivery in self.service.deliveries]

    def rows(self) -> list[tuple[str, int]]:
        """Return status and number of attempts of each row, in the order of enqueueing."""
        found = ScheduledTask.objects.order_by("enqueued_at", "id")
        return list(found.values_list("status", "attempt"))


class HintTests(RoundTripTestCase):
    """With the signature alone, which needs no configuration."""

    def test_a_task(self):
        """It runs without a runner, and nothing is left behind."""
        result = tasks.calculate_meaning_of_life.enqueue()
        self.wait()
        result.refresh()

        self.assertEqual((42, [200]), (result.return_value, self.statuses()))
        self.assertEqual(1, result.attempts)
        self.assertEqual(0, Worker.objects.count())

    def test_the_settings_pass_the_checks(self):
        """Those of --deploy too."""
        found = [*checks.check_backends(), *checks.check_mounts(), *checks.check_deployment()]

        # Another test may have imported tasks that no runner of this one would run.
        self.assertEqual([], [message for message in found if message.id != "dbtasks.W009"])

    def test_a_delay(self):
        """The service holds the hint; the row does not run before its time."""
        at = timezone.now() + timedelta(seconds=1.5)
        result = tasks.calculate_meaning_of_life.using(run_after=at).enqueue()
        self.wait()
        result.refresh()

        self.assertEqual([200], self.statuses())
        self.assertGreaterEqual(result.started_at, at)
        self.assertEqual(1, result.attempts)

    def test_a_hint_that_is_much_too_early(self):
        """The row waits, and another hint is sent for its time."""
        at = timezone.now() + LATER
        tasks.add.using(run_after=at).enqueue(1, 2)
        task = self.service.tasks[0]
        self.service.deliver(task)
        until(lambda: len(self.service.tasks) == 2, "the second hint")

        until(lambda: self.service.deliveries, "the answer")
        self.assertIn(b"not due", self.service.deliveries[0].body)
        self.assertEqual([200], self.statuses())
        self.assertEqual(task.schedule_time, self.service.tasks[1].schedule_time)
        self.assertEqual([("READY", 0)], self.rows())

    def test_a_row_that_was_cancelled(self):
        """The hint finds nothing to do, and is not repeated."""
        self.service.is_paused = True
        result = tasks.add.enqueue(1, 2)
        result.cancel()
        self.service.resume()
        self.wait()

        self.assertEqual([200], self.statuses())
        self.assertEqual([0], [attempts for _, attempts in self.rows()])

    def test_a_row_that_is_gone(self):
        """The same; a service would repeat anything else for days."""
        self.service.is_paused = True
        tasks.add.enqueue(1, 2)
        ScheduledTask.objects.all().delete()
        self.service.resume()
        self.wait()

        self.assertEqual([200], self.statuses())
        self.assertIn(b"unknown", self.service.deliveries[0].body)

    def test_a_forged_signature(self):
        """The row is not run; the service tries again, in vain."""
        self.service.attempts = 3
        with (
            mock.patch("dbtasks.contrib.cloudtasks.push.sign", return_value="x" * 43),
            self.assertLogs("dbtasks.http", "WARNING") as logs,
        ):
            tasks.add.enqueue(1, 2)
            self.wait()
        self.assertEqual(1, len(logs.output))

        self.assertEqual([401] * 3, self.statuses())
        self.assertEqual([("READY", 0)], self.rows())


class RetryTests(RoundTripTestCase):
    """Failed attempts are our own business."""

    backend = {"max_attempts": 3, "backoff": 0.2}

    def test_a_task_that_fails(self):
        """Each attempt has a hint of its own, and each hint is answered 200."""
        with self.assertLogs("dbtasks", "WARNING"):
            tasks.fail.enqueue()
            until(lambda: self.rows() == [("FAILED", 3)], "the third attempt")
            self.wait()

        self.assertEqual([200] * 3, self.statuses())
        self.assertEqual(3, len(self.service.tasks))


class DoubleTests(RoundTripTestCase):
    """A service that delivers twice, late and in another order, as it may."""

    knobs = {"double": 0.5, "delay": 0.3, "reorder": 0.3, "seed": 5}

    def test_each_row_is_started_once(self):
        """However often its hint comes."""
        for number in range(20):
            tasks.remember.enqueue(number)
        self.wait()

        self.assertGreater(len(self.service.deliveries), 20)
        self.assertEqual({200}, set(self.statuses()))
        self.assertEqual([("SUCCESSFUL", 1)] * 20, self.rows())
        self.assertEqual(list(range(20)), sorted(tasks.ran))


class LossTests(RoundTripTestCase):
    """A service that loses hints."""

    knobs = {"lose": 0.4, "seed": 7}
    options = {"late": 1.0}

    def test_sweeps_find_the_rows(self):
        """They send further hints, each of which has a name of its own."""
        for number in range(10):
            tasks.remember.enqueue(number)
        hinted = 0

        def are_finished() -> bool:
            nonlocal hinted
            hinted += dbtasks.sweep(max_seconds=1).hinted
            return self.rows() == [("SUCCESSFUL", 1)] * 10

        until(are_finished, "the end of all rows")
        self.wait()

        self.assertEqual(list(range(10)), sorted(tasks.ran))
        named = [task for task in self.service.tasks if "-" in task.name.rpartition("/")[2]]
        self.assertTrue(1 <= len(self.service.lost) <= len(named) <= hinted)


class BulkTests(RoundTripTestCase):
    """Many rows of one commit."""

    options = {"bulk": 10}

    def test_drain_hints(self):
        """A few calls run them all."""
        tasks.add.enqueue_many([((number, 1), {}) for number in range(35)])
        self.assertEqual(4, len(self.service.requests))
        self.wait()

        self.assertEqual([("SUCCESSFUL", 1)] * 35, self.rows())
        urls = {task.http_request.url for task in self.service.tasks}
        self.assertEqual({f"{self.live_server_url}/tasks/run/"}, urls)


class TokenTests(RoundTripTestCase):
    """With a token of a service account, for each hint and for the scheduler."""

    options = {"service_account": EMAIL}

    def setUp(self) -> None:
        self.signer = Signer()
        self.keys = self.enterContext(Loopback(Keys(self.signer)))
        super().setUp()
        self.service.mint = lambda email, audience: self.signer.token(email=email, aud=audience)

    def credentials(self) -> list[Any]:
        return [OIDC(self.live_server_url, EMAIL, certs=self.keys.origin)]

    def test_the_token_is_enough(self):
        """Also where the signature does not arrive."""
        without = mock.patch("tests.support.cloudtasks.MISSING", {HEADER})
        with without:
            result = tasks.calculate_meaning_of_life.enqueue()
            self.wait()
        result.refresh()

        self.assertEqual((42, [200]), (result.return_value, self.statuses()))
        self.assertEqual(self.live_server_url, self.audience())

    def audience(self) -> str:
        return str(self.service.tasks[0].http_request.oidc_token.audience)

    def test_the_signature_is_enough(self):
        """A private service removes the signature of the token; ours arrives."""
        self.service.mint = lambda email, audience: (
            self.signer.token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
        )
        result = tasks.calculate_meaning_of_life.enqueue()
        self.wait()
        result.refresh()

        self.assertEqual((42, [200]), (result.return_value, self.statuses()))

    def sweep(self, token: str) -> int:
        request = urllib.request.Request(
            f"{self.live_server_url}/tasks/sweep/",
            method="POST",
            headers={"Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def test_cloud_scheduler(self):
        """Its token opens sweep/; that of another account does not, nor does a signature."""
        good = self.signer.token(aud=self.live_server_url)
        other = self.signer.token(aud=self.live_server_url, email="x@other.example")

        self.assertEqual(200, self.sweep(good))
        with self.assertLogs("dbtasks.http", "WARNING") as logs:
            self.assertEqual(401, self.sweep(other))
        self.assertIn("wrong email", logs.output[0])
        self.assertNotIn(other, "".join(logs.output))

    def test_google_is_away(self):
        """503, so that the scheduler comes again."""
        self.keys.answer.is_down = True  # type: ignore[attr-defined]
        token = self.signer.token(aud=self.live_server_url)

        with self.assertLogs("dbtasks.http", "WARNING"):
            self.assertEqual(503, self.sweep(token))
