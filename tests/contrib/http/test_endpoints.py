"""What the endpoints do and answer."""

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

from django.db import connections
from django.test import TransactionTestCase, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dbtasks import store
from dbtasks.contrib.http import views
from dbtasks.models import ScheduledTask, Worker
from dbtasks.push import HEADER, sign

from ... import tasks
from ...support.hints import Recorder, sending, with_push
from ...support.mounts import BEARER, ID, get, mounted, post

LATER = timedelta(hours=1)


class EndpointTestCase(TransactionTestCase):
    """The default backend's endpoints are mounted at /tasks/."""

    arguments: dict[str, Any] = {}

    def setUp(self) -> None:
        self.enterContext(mounted(**self.arguments))
        tasks.ran.clear()

    def answer(self, url: str, body: Any = None, headers: dict[str, str] = BEARER) -> Any:
        """Return the JSON of a POST that succeeds."""
        response = post(url, body, headers)
        self.assertEqual(
            (200, "application/json"), (response.status_code, response["content-type"])
        )
        return response.json()


class SweepTests(EndpointTestCase):
    """POST sweep/"""

    def test_a_sweep_runs_what_is_due(self):
        """The answer counts what was done, and says what is left."""
        tasks.add.enqueue(1, 2)
        tasks.fail.enqueue()
        tasks.add.using(run_after=timezone.now() + LATER).enqueue(1, 2)

        answer = self.answer("sweep/")

        self.assertLess(answer.pop("seconds"), 20)
        self.assertRegex(answer.pop("next_due"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        names = {"again": 0, "rescued": 0, "fired": 0, "hinted": 0, "purged": 0}
        expected = {"ran": 2, "succeeded": 1, "failed": 1, "due_left": False} | names
        self.assertEqual(expected, answer)

    def test_a_sweep_heeds_its_limits(self):
        """max_tasks ends it; the rest is left."""
        for n in range(3):
            tasks.remember.enqueue(n)

        answer = self.answer("sweep/", {"max_tasks": 2, "max_seconds": 20})

        self.assertEqual((2, True, [0, 1]), (answer["ran"], answer["due_left"], tasks.ran))

    def test_a_failed_task_is_no_failed_request(self):
        """Nobody but dbtasks repeats a task: the code is 200."""
        tasks.fail.enqueue("secret-of-the-task")

        response = post("sweep/")

        self.assertEqual(200, response.status_code)
        self.assertNotIn(b"secret", response.content)

    def test_an_empty_sweep(self):
        """Nothing to do is 200 as well."""
        answer = self.answer("sweep/")

        self.assertEqual(
            (0, False, None), tuple(answer[n] for n in ("ran", "due_left", "next_due"))
        )


class RunTests(EndpointTestCase):
    """POST run/"""

    def test_run_answers_with_results(self):
        """Each has id, status and task, and nothing else."""
        good, bad = tasks.add.enqueue(1, 2), tasks.fail.enqueue()

        answer = self.answer("run/")

        self.assertEqual((2, False), (answer["ran"], answer["due_left"]))
        expected = [
            {"id": good.id, "status": "SUCCESSFUL", "task": "tests.tasks.add"},
            {"id": bad.id, "status": "FAILED", "task": "tests.tasks.fail"},
        ]
        self.assertEqual(expected, answer["results"])
        self.assertEqual({"ran", "due_left", "next_due", "seconds", "results"}, answer.keys())

    def test_run_of_one_queue(self):
        """Rows of other queues stay."""
        tasks.remember.enqueue("default")
        tasks.remember.using(queue_name="mail").enqueue("mail")

        answer = self.answer("run/", {"queue": "mail"})

        self.assertEqual((1, False, ["mail"]), (answer["ran"], answer["due_left"], tasks.ran))

    def test_a_hundred_tasks_unless_more_are_asked_for(self):
        """The first hundred results are shown."""
        for _ in range(230):
            tasks.noop_task.enqueue()

        first, second = self.answer("run/"), self.answer("run/", {"max_tasks": 120})

        self.assertEqual((100, True, 100), (first["ran"], first["due_left"], len(first["results"])))
        self.assertEqual(
            (120, True, 100), (second["ran"], second["due_left"], len(second["results"]))
        )


class RunOneTests(EndpointTestCase):
    """POST run/<uuid>/"""

    def test_a_due_row_runs(self):
        """Whatever the task came to."""
        for task, status in ((tasks.noop_task, "SUCCESSFUL"), (tasks.fail, "FAILED")):
            result = task.enqueue()
            answer = self.answer(f"run/{result.id}/")
            self.assertLess(answer.pop("seconds"), 20)
            shown = {"id": result.id, "status": status, "task": task.module_path, "attempt": 1}
            self.assertEqual({"ran": True} | shown, answer)

    def test_a_row_that_is_due_later(self):
        """It stays, and the answer says when it is due."""
        result = tasks.add.using(run_after=timezone.now() + LATER).enqueue(1, 2)

        answer = self.answer(f"run/{result.id}/")

        self.assertEqual(
            (False, result.id, "not due"), (answer["ran"], answer["id"], answer["why"])
        )
        self.assertTrue(answer["next_due"])
        self.assertEqual({"ran", "id", "why", "next_due"}, answer.keys())

    def test_a_finished_row(self):
        """It is not run again."""
        result = tasks.remember.enqueue(1)
        self.answer("run/")

        answer = self.answer(f"run/{result.id}/")

        self.assertEqual((False, "finished", [1]), (answer["ran"], answer["why"], tasks.ran))

    def test_a_failed_row_may_be_retried(self):
        """Only with allow_retry."""
        result = tasks.fail.enqueue()
        self.answer("run/")

        without = self.answer(f"run/{result.id}/", {"allow_retry": False})
        answer = self.answer(f"run/{result.id}/", {"allow_retry": True})

        self.assertEqual("finished", without["why"])
        self.assertEqual((True, 2, "FAILED"), (answer["ran"], answer["attempt"], answer["status"]))

    def test_rows_that_are_not_there_cannot_be_told_apart(self):
        """Unknown, purged, and of another backend: the answers differ in the id only."""
        gone = tasks.noop_task.enqueue()
        self.answer("run/")
        store.delete("default", [gone.id])
        other = tasks.noop_task.enqueue()
        ScheduledTask.objects.filter(pk=other.id).update(backend="other")

        for id in (ID, gone.id, other.id):
            with self.subTest(id):
                expected = {"ran": False, "id": id, "why": "unknown", "next_due": None}
                self.assertEqual(expected, self.answer(f"run/{id}/"))

    def test_a_running_row_is_left_alone(self):
        """While its worker lives."""
        result = tasks.noop_task.enqueue()
        now = timezone.now()
        Worker.objects.create(
            worker_id="w", backend="default", state="live", started_at=now, beat_at=now
        )
        store.claim("default", "default", "w", 1)

        answer = self.answer(f"run/{result.id}/")

        self.assertEqual((False, "running"), (answer["ran"], answer["why"]))


class StatusTests(EndpointTestCase):
    """GET status/"""

    def test_status_counts_rows(self):
        """By state, and nothing of another backend."""
        tasks.fail.enqueue()
        self.answer("run/")
        tasks.add.enqueue(1, 2)
        tasks.add.using(queue_name="mail", priority=5).enqueue(1, 2)
        tasks.add.using(run_after=timezone.now() + LATER).enqueue(1, 2)
        foreign = tasks.add.enqueue(1, 2)
        ScheduledTask.objects.filter(pk=foreign.id).update(backend="other")

        answer = get("status/").json()
        mail = get("status/", queue="mail").json()

        self.assertLess(abs(answer.pop("oldest_due_seconds")), 20)
        self.assertGreater(answer.pop("next_due"), answer.pop("time"))
        counts = {"due": 2, "scheduled": 1, "running": 0, "failed": 1, "workers": 0}
        self.assertEqual({"backend": "default"} | counts, answer)
        self.assertEqual((1, 0, None), (mail["due"], mail["scheduled"], mail["next_due"]))

    def test_an_empty_queue_has_no_times(self):
        """They are null."""
        answer = get("status/").json()

        self.assertEqual((None, None), (answer["oldest_due_seconds"], answer["next_due"]))

    def test_the_oldest_row_is_found_below_another_priority(self):
        """The head of each priority is looked at."""
        old = tasks.add.using(priority=-5).enqueue(1, 2)
        ScheduledTask.objects.filter(pk=old.id).update(enqueued_at=timezone.now() - LATER)
        for _ in range(101):
            tasks.add.enqueue(1, 2)

        self.assertGreater(get("status/").json()["oldest_due_seconds"], 3590)

    def test_status_is_never_cached(self):
        """An old answer would hide what has happened since."""
        self.assertIn("no-store", get("status/")["cache-control"])


@override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin")
class NaiveTimeTests(EndpointTestCase):
    """Without USE_TZ."""

    def test_times_are_in_utc(self):
        """Whatever time zone the request has set; an early hint is sent on for the right time."""

        def in_tokyo(handler: Any) -> Any:
            def middleware(request: Any) -> Any:
                with timezone.override("Asia/Tokyo"):
                    return handler(request)

            return middleware

        push = Recorder()
        self.enterContext(with_push(push))
        self.enterContext(sending())
        self.enterContext(mock.patch.object(views, "in_tokyo", in_tokyo, create=True))
        middleware = ["dbtasks.contrib.http.views.in_tokyo"]
        self.enterContext(override_settings(MIDDLEWARE=middleware))
        at = datetime.now(UTC) + LATER
        naive = at.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
        result = tasks.add.using(run_after=naive).enqueue(1, 2)
        push.taken()

        answer = self.answer(f"run/{result.id}/", headers={HEADER: sign("default", result.id)})

        text = at.isoformat(timespec="milliseconds")
        self.assertEqual(("not due", text), (answer["why"], answer["next_due"]))
        self.assertEqual(text, get("status/").json()["next_due"])
        [hint] = push.taken()
        self.assertLess(abs(hint.run_after - at), timedelta(seconds=1))


class PurgeTests(EndpointTestCase):
    """POST purge/"""

    def setUp(self) -> None:
        super().setUp()
        tasks.noop_task.enqueue()
        tasks.fail.enqueue()
        self.answer("run/")

    def age(self, **values: Any) -> None:
        ScheduledTask.objects.update(**values)

    def test_without_an_age_only_what_is_expired(self):
        """A request without parameters never empties the table."""
        self.assertEqual({"deleted": 0, "left": False}, self.answer("purge/"))

        self.age(delete_after=timezone.now() - LATER)
        tasks.noop_task.enqueue()

        self.assertEqual({"would_delete": 2}, self.answer("purge/", {"dry_run": True}))
        self.assertEqual({"deleted": 2, "left": False}, self.answer("purge/"))
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_by_age(self):
        """Whatever the retention; rows that wait or run are never deleted."""
        self.age(finished_at=timezone.now() - timedelta(days=8))
        tasks.noop_task.enqueue()

        self.assertEqual({"deleted": 0, "left": False}, self.answer("purge/", {"older_than": "9d"}))
        dry = {"older_than": "7d", "dry_run": True, "status": ["FAILED"]}
        self.assertEqual({"would_delete": 1}, self.answer("purge/", dry))
        failed = {"older_than": 691_000, "status": ["FAILED"]}
        self.assertEqual({"deleted": 1, "left": False}, self.answer("purge/", failed))
        self.assertEqual({"deleted": 1, "left": False}, self.answer("purge/", {"older_than": "7d"}))

    def test_other_backends_are_left_alone(self):
        """Their rows are none of this mount's."""
        self.age(delete_after=timezone.now() - LATER, finished_at=timezone.now() - LATER)
        ScheduledTask.objects.update(backend="other")

        for body in ({}, {"older_than": "1s"}):
            self.assertEqual({"deleted": 0, "left": False}, self.answer("purge/", body))


class HintTests(EndpointTestCase):
    """Hints: they need no configuration, and allow nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.push = Recorder()
        self.enterContext(with_push(self.push))
        self.enterContext(sending())

    def hint(self, id: str | None) -> dict[str, str]:
        return {HEADER: sign("default", id)}

    def test_a_hint_runs_its_row(self):
        """The signature is enough."""
        result = tasks.remember.enqueue(1)

        answer = self.answer(f"run/{result.id}/", headers=self.hint(result.id))

        self.assertEqual((True, [1]), (answer["ran"], tasks.ran))

    def test_a_drain_hint_runs_what_is_due(self):
        """And sends one more if something is left."""
        for n in range(102):
            tasks.remember.enqueue(n)
        self.push.taken()

        first = self.answer("run/", headers=self.hint(None))
        [hint] = self.push.taken()
        second = self.answer("run/", headers=self.hint(None))

        self.assertEqual((100, True), (first["ran"], first["due_left"]))
        self.assertEqual((None, "default", "default"), hint[:3])
        self.assertEqual((2, False, []), (second["ran"], second["due_left"], self.push.taken()))

    def test_a_chain_of_drains_does_not_grow(self):
        """A task that enqueues itself keeps one chain going; a person starts none."""
        tasks.enqueue_other.enqueue("x", 1000)
        for n in range(3):
            self.push.taken()
            self.answer("run/", {"max_tasks": 5}, headers=self.hint(None))
            drains = [hint for hint in self.push.taken() if hint.id is None]
            self.assertEqual(1, len(drains), n)

        self.answer("run/", {"max_tasks": 5})
        self.assertEqual([], [hint for hint in self.push.taken() if hint.id is None])

    def test_a_drain_that_ran_nothing_sends_no_hint(self):
        """What is left cannot be run here, and would not end."""
        tasks.remember.enqueue(1)
        self.push.taken()
        with mock.patch("dbtasks.inline.Inline.claim", return_value=None):
            answer = self.answer("run/", headers=self.hint(None))

        self.assertEqual((0, True), (answer["ran"], answer["due_left"]))
        self.assertEqual([], self.push.taken())

    def test_a_hint_with_another_credential_is_a_hint(self):
        """Cloud Tasks sends a token beside the signature."""
        with self.assertLogs("dbtasks.http", "INFO") as logs:
            self.answer("run/", headers=self.hint(None) | BEARER)

        self.assertEqual("hint", logs.records[0].who)

    def test_a_duplicate_costs_little(self):
        """The row is looked at, and nothing is written."""
        result = tasks.remember.enqueue(1)
        self.answer(f"run/{result.id}/", headers=self.hint(result.id))
        with CaptureQueriesContext(connections["default"]) as queries:
            self.answer(f"run/{result.id}/", headers=self.hint(result.id))

        self.assertLessEqual(len(queries), 3, queries.captured_queries)

    def test_an_early_hint_is_sent_on(self):
        """For the time when its row is due; its attempts stay as they are."""
        at = timezone.now() + LATER
        result = tasks.add.using(run_after=at).enqueue(1, 2)
        self.push.taken()

        answer = self.answer(f"run/{result.id}/", headers=self.hint(result.id))

        self.assertEqual("not due", answer["why"])
        [hint] = self.push.taken()
        self.assertEqual((result.id, "default", "default", 0), hint[:4])
        self.assertLess(abs(hint.run_after - at), timedelta(seconds=1))

    def test_a_hint_never_allows_a_retry(self):
        """A duplicate must not run a FAILED row again."""
        result = tasks.fail.enqueue()
        self.answer("run/")

        response = post(f"run/{result.id}/", {"allow_retry": True}, self.hint(result.id))

        self.assertEqual(401, response.status_code)
        self.assertEqual(1, ScheduledTask.objects.get().attempt)

    def test_a_hint_opens_nothing_else(self):
        """No sweep, no status, no purge, no other row; and without a push nothing at all."""
        other = tasks.add.enqueue(1, 2)
        for url in ("sweep/", "purge/", f"run/{other.id}/"):
            for id in (ID, None):
                self.assertEqual(401, post(url, headers=self.hint(id)).status_code, url)
        self.assertEqual(401, get("status/", headers=self.hint(None)).status_code)
        with with_push(None):
            response = post(f"run/{other.id}/", headers=self.hint(other.id))
        self.assertEqual(401, response.status_code)

    def test_signatures_of_others(self):
        """Another alias, another key, none, and what is no signature."""
        result = tasks.add.enqueue(1, 2)
        right = sign("default", result.id)
        wrong = [sign("other", result.id), right[:-1], f"{right}x", "", "é", "x" * 100_000]
        with self.settings(SECRET_KEY="another"):
            wrong.append(sign("default", result.id))

        for signature in wrong:
            response = post(f"run/{result.id}/", headers={HEADER: signature})
            self.assertEqual(401, response.status_code, signature[:80])

    def test_other_spellings_of_the_id(self):
        """The canonical UUID is signed, so capitals and missing hyphens do not matter."""
        for spell in (str.upper, lambda id: id.replace("-", "")):
            result = tasks.add.enqueue(1, 2)
            answer = self.answer(f"run/{spell(result.id)}/", headers=self.hint(result.id))
            self.assertEqual((True, result.id), (answer["ran"], answer["id"]))

    def test_a_rotated_key(self):
        """Hints that wait for weeks stay valid while the old key is among the fallbacks."""
        result = tasks.add.enqueue(1, 2)
        old = self.hint(result.id)

        with self.settings(
            SECRET_KEY="new", SECRET_KEY_FALLBACKS=["dbtasks-test-key-that-protects-nothing"]
        ):
            self.assertTrue(self.answer(f"run/{result.id}/", headers=old)["ran"])
