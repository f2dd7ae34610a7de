"""Hints by SQS, and the Lambda function that runs them."""

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock, skipUnless
from uuid import uuid4

import yaml
from django.db import connections
from django.test import SimpleTestCase, TransactionTestCase, override_settings
from django.utils import timezone, translation

from dbtasks import checks
from dbtasks.contrib import aws
from dbtasks.contrib.aws import SQS, function, handler, is_ours, sqs
from dbtasks.contrib.aws.events import Message, body_of
from dbtasks.models import ScheduledTask
from dbtasks.push import Hint, NotSent
from dbtasks.sweeping import run_due
from dbtasks.wakeup import tell

from ..support.hints import sending, with_push
from ..support.processes import ROOT
from ..support.projects import run_in_project
from ..support.rows import DB, make_task, row
from ..support.sqs import LambdaContext, SQSTestCase, batch, record
from ..support.tasks import look_around
from ..support.together import together
from ..tasks import add

# The URLs of a site that has none of ours.
urlpatterns: list[Any] = []

DEPLOYMENT = ROOT / "demo" / "deployment" / "lambda"
DONE: dict[str, Any] = {"batchItemFailures": []}


def body(id: Any, **values: Any) -> dict[str, Any]:
    """Return the body of a hint about that row."""
    return {"dbtasks": 1, "backend": "default", "id": str(id), "queue": "default"} | values


def failures(event: dict[str, Any]) -> list[str]:
    """Run the event; return which of its messages, by their place, are to come again."""
    ids = [record["messageId"] for record in event["Records"]]
    answer = handler(event, LambdaContext())
    return [ids.index(failure["itemIdentifier"]) for failure in answer["batchItemFailures"]]


class RoundTripTests(SQSTestCase, TransactionTestCase):
    """From enqueue() to the row's end, by way of SQS."""

    def setUp(self) -> None:
        super().setUp()
        self.push = SQS(self.url, endpoint=self.endpoint)
        self.enterContext(with_push(self.push))
        self.enterContext(sending())

    def test_a_task_runs_by_its_message(self):
        """Nothing but the message tells the function of the row."""
        result = add.enqueue(1, 2)
        event = self.delivered()

        self.assertEqual(1, len(event["Records"]))
        self.assertEqual(DONE, handler(event, LambdaContext()))
        result.refresh()
        self.assertEqual(("SUCCESSFUL", 3), (result.status, result.return_value))

    def test_each_queue_has_its_own(self):
        """The name of the task's queue is part of the URL."""
        add.using(queue_name="mail").enqueue(1, 2)

        self.assertEqual(0, len(self.delivered()["Records"]))
        self.assertEqual(1, len(self.delivered("mail")["Records"]))

    def test_a_message_twice_runs_the_row_once(self):
        """SQS delivers at least once."""
        result = add.enqueue(1, 2)
        event = self.delivered()
        event["Records"] *= 2

        for _ in range(2):
            self.assertEqual(DONE, handler(event, LambdaContext()))
        self.assertEqual(1, row(result.id).attempt)

    def test_a_row_due_in_ten_minutes_has_its_message_then(self):
        """SQS holds it for that long."""
        add.using(run_after=timezone.now() + timedelta(minutes=10)).enqueue(1, 2)

        self.assertEqual((1, []), (self.delayed(), self.delivered()["Records"]))

    def test_a_row_due_later_has_none(self):
        """SQS refuses more than 15 minutes."""
        add.using(run_after=timezone.now() + timedelta(minutes=16)).enqueue(1, 2)

        self.assertEqual((0, []), (self.delayed(), self.delivered()["Records"]))

    def test_a_sweep_sends_it_when_the_row_comes_due(self):
        """The row is promoted, and the function runs it by its message."""
        result = add.using(run_after=timezone.now() + timedelta(minutes=16)).enqueue(1, 2)
        past = timezone.now() - timedelta(seconds=1)
        ScheduledTask.objects.filter(pk=result.id).update(run_after=past)

        handler({"dbtasks": "sweep"}, LambdaContext())
        self.assertEqual([], failures(event := self.delivered()))
        self.assertEqual(1, len(event["Records"]))
        self.assertEqual("SUCCESSFUL", row(result.id).status)

    def test_a_message_that_comes_early_is_sent_on(self):
        """It waits in the queue until then. One about a row that is due much later is not."""
        for minutes in (30, 5):
            later = timezone.now() + timedelta(minutes=minutes)
            self.assertEqual([], failures(batch(body(make_task(run_after=later)))))
            expected = 1 if minutes == 5 else 0
            self.assertEqual((expected, []), (self.delayed(), self.delivered()["Records"]))

    def test_a_drain_that_leaves_rows_sends_another(self):
        """One, for the same queue. One that found nothing to run sends none."""
        ids = [make_task(), make_task()]
        drain = batch(body(None) | {"id": None})
        with mock.patch.object(function.Clock, "budget", 1e-9):
            self.assertEqual([], failures(drain))
            self.assertEqual([], self.delivered()["Records"])

        short = partial(run_due, max_tasks=1)
        with mock.patch.object(function, "run_due", short):
            self.assertEqual([], failures(drain))
        self.assertEqual([], failures(event := self.delivered()))
        self.assertEqual(1, len(event["Records"]))
        self.assertEqual(["SUCCESSFUL"] * 2, [row(id).status for id in ids])

    def test_many_go_by_tens(self):
        """SQS takes no more at once."""
        with mock.patch.object(SQS, "_send", autospec=True, side_effect=SQS._send) as send:
            add.enqueue_many([((n, 1), {}) for n in range(25)])

        self.assertEqual([5, 10, 10], sorted(len(call.args[2]) for call in send.mock_calls))
        self.assertEqual([], failures(event := self.delivered()))
        self.assertEqual(25, len(event["Records"]))
        self.assertEqual(25, ScheduledTask.objects.filter(status="SUCCESSFUL").count())

    def test_very_many_become_drains(self):
        """A drain runs what is due in its queue."""
        other = make_task(queue_name="mail")
        add.enqueue_many([((n, 1), {}) for n in range(60)])
        event = self.delivered()

        self.assertLess(len(event["Records"]), 10)
        self.assertEqual([], failures(event))
        self.assertEqual(60, ScheduledTask.objects.filter(status="SUCCESSFUL").count())
        self.assertEqual("READY", row(other).status)


class SendTests(SQSTestCase):
    """What goes to SQS, and what comes of an answer."""

    def hints(self, count: int, **values: Any) -> list[Hint]:
        """Return hints about rows that do not exist."""
        return [Hint(str(uuid4()), "default", "default")._replace(**values) for _ in range(count)]

    def test_the_body_has_the_id_and_nothing_else_of_the_task(self):
        """And the names of backend and queue."""
        [hint] = self.hints(1)
        SQS(self.url, endpoint=self.endpoint).send([hint])
        [message] = self.delivered()["Records"]

        self.assertEqual(body(hint.id), json.loads(message["body"]))

    def test_some_are_refused(self):
        """boto3 raises nothing then; the others are sent."""
        push = SQS(self.url, endpoint=self.endpoint)
        answer = {"Successful": [], "Failed": [{"Id": "3", "Code": "InternalError"}] * 2}
        with mock.patch.object(push.client(), "send_message_batch", return_value=answer):
            with self.assertRaisesRegex(NotSent, "SQS refused 2 of 10 hints: InternalError."):
                push.send(self.hints(10))
            with sending(), self.assertLogs("dbtasks.push", "WARNING") as logs:
                self.assertEqual(0, tell(push, self.hints(10)))
        self.assertIn("SQS refused 2 of 10 hints: InternalError", logs.output[0])

    def test_a_delay_is_never_too_short_nor_too_long(self):
        """It is rounded up, for an early message would only be sent on."""
        push, now = SQS(self.url, endpoint=self.endpoint), timezone.now()
        push.client()
        clock = self.enterContext(mock.patch.object(sqs, "datetime"))
        clock.now.return_value = now
        for seconds, expected in {-5: 0, 0.2: 1, 59.5: 60, 899.5: 900, 905: 900}.items():
            with mock.patch.object(push.client(), "send_message_batch", return_value={}) as send:
                push.send(self.hints(1, run_after=now + timedelta(seconds=seconds)))
            [entry] = send.mock_calls[0].kwargs["Entries"]
            self.assertEqual(expected, entry["DelaySeconds"], seconds)

    def test_there_is_no_such_queue(self):
        """The guard logs it; enqueue() raises nothing."""
        push = SQS(self.url.replace(self.prefix, "nobody"), endpoint=self.endpoint)
        with sending(), self.assertLogs("dbtasks.push", "WARNING") as logs:
            self.assertEqual(0, tell(push, self.hints(1)))
        self.assertIn("QueueDoesNotExist", logs.output[0])

    def test_one_permission_is_enough(self):
        """Nothing but SendMessageBatch is called."""
        push, called = SQS(self.url, endpoint=self.endpoint), []
        push.client().meta.events.register(
            "before-call.*", lambda model, **_: called.append(model.name)
        )
        push.send(self.hints(12))

        self.assertEqual({"SendMessageBatch"}, set(called))

    def test_a_process_has_one_client(self):
        """Threads share it; a child makes its own."""
        push = SQS(self.url, endpoint=self.endpoint)
        with mock.patch.object(SQS, "_connect", autospec=True, side_effect=SQS._connect) as made:
            together(8, lambda _: push.client())
            self.assertEqual(1, made.call_count)
            with mock.patch.object(os, "getpid", return_value=os.getpid() + 1):
                push.client()
            self.assertEqual(2, made.call_count)

    def test_a_server_that_does_not_answer_holds_up_for_seconds_only(self):
        """boto3's own limits are a minute, and it tries again."""
        config = SQS(self.url, endpoint=self.endpoint).client().meta.config

        self.assertEqual((1, 2), (config.connect_timeout, config.read_timeout))
        self.assertEqual(1, config.retries["total_max_attempts"])


class SettingsTests(SimpleTestCase):
    """The object in settings."""

    URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/{queue}"

    def found(self, url: str, queues: Iterable[str] = (), **arguments: Any) -> list[str]:
        """Return what the check of that object says."""
        tasks = {
            "default": {
                "BACKEND": "dbtasks.backend.DatabaseBackend",
                "QUEUES": list(queues),
                "OPTIONS": {"push": (push := SQS(url, **arguments))},
            }
        }
        with override_settings(TASKS=tasks):
            return [f"{message.id}: {message.msg}" for message in push.check("default")]

    def test_valid_urls(self):
        """Of standard queues, with and without the name of the task's."""
        for url in (self.URL, "https://sqs.eu-west-1.amazonaws.com/123456789012/all"):
            self.assertEqual([], self.found(url, ["default", "mail_2"]))
        self.assertEqual([], self.found(self.URL, endpoint="http://127.0.0.1:4566"))

    @override_settings(ROOT_URLCONF=__name__)
    def test_no_url_is_needed(self):
        """Lambda calls the handler, so the site may have no endpoints()."""
        with with_push(SQS(self.URL)):
            self.assertEqual([], checks.check_mounts())

    def test_fifo_queues_are_refused(self):
        """A message of theirs cannot be delayed."""
        for url, queues in ((self.URL + ".fifo", []), (self.URL, ["default", "mail.fifo"])):
            [said] = self.found(url, queues)
            self.assertIn("dbtasks.E024", said)
            self.assertIn("is a FIFO queue", said)

    def test_names_that_no_queue_can_have(self):
        """Spaces, dots, and more than 80 characters; not where the name is not used."""
        for name in ("two words", "a.b", "x" * 81):
            [said] = self.found(self.URL, [name])
            self.assertIn("dbtasks.E024", said)
            self.assertEqual([], self.found(self.URL.replace("{queue}", "all"), [name]))

    def test_urls_that_are_none(self):
        """An ARN, a name, and http."""
        for url in ("arn:aws:sqs:eu-west-1:1:q", "default", "http://sqs.example.com/1/default"):
            self.assertIn("dbtasks.E024", " ".join(self.found(url)))
        for url in ("u:secret@sqs", "https://u:x/secret@sqs", "https://u:secret@sqs/1/a.b?secret"):
            said = self.found(url)
            self.assertTrue(said)
            self.assertNotIn("secret", repr(SQS(url)) + str(said))

    def test_the_region_is_in_the_url(self):
        """Whatever the form of the address; an argument wins."""
        for host, region in {
            "sqs.eu-west-1.amazonaws.com": "eu-west-1",
            "sqs.cn-north-1.amazonaws.com.cn": "cn-north-1",
            "sqs-fips.us-gov-west-1.amazonaws.com": "us-gov-west-1",
            "vpce-1a-2b.sqs.us-east-2.vpce.amazonaws.com": "us-east-2",
            "queue.amazonaws.com": None,
            "localhost:4566": None,
        }.items():
            with self.subTest(host):
                self.assertEqual(region, SQS(f"https://{host}/1/q").region)
        self.assertEqual("eu-west-2", SQS(self.URL, region="eu-west-2").region)

    def test_it_is_at_home_at_aws(self):
        """Not on a laptop that somebody is logged in on."""
        names = ("AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME")
        away = {name: value for name, value in os.environ.items() if name not in names}
        with mock.patch.dict(os.environ, away | {"AWS_PROFILE": "production"}, clear=True):
            self.assertFalse(SQS(self.URL).is_at_home())
            for name in names:
                with mock.patch.dict(os.environ, {name: "x"}):
                    self.assertTrue(SQS(self.URL).is_at_home())

    @skipUnless(find_spec("boto3"), "boto3 is not installed")
    def test_no_client_is_made_before_the_first_hint(self):
        """Neither by settings nor by the checks; the handler alone sets Django up."""
        settings = """
SECRET_KEY = "for this test only"
INSTALLED_APPS = ["shop", "dbtasks"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:",
                         "OPTIONS": {"transaction_mode": "IMMEDIATE"}}}
from dbtasks.contrib.aws import SQS, is_ours
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "OPTIONS": {
    "push": SQS("https://sqs.eu-west-1.amazonaws.com/123456789012/{queue}")}}}
"""
        code = """
import sys
from django.conf import settings
settings.TASKS
from django.apps import apps
assert not apps.ready
import dbtasks.contrib.aws
assert not apps.ready
from dbtasks.contrib.aws import handler
assert apps.ready
from django.core.management import call_command
call_command("check")
call_command("migrate", verbosity=0)
print(handler({"dbtasks": "sweep"}, None))
assert "boto3" not in sys.modules
"""
        done = run_in_project({"../settings.py": settings}, "-c", code)

        self.assertEqual("", done.stderr)
        self.assertIn("'ran': 0", done.stdout)


class HandlerTests(TransactionTestCase):
    """Messages of SQS, as Lambda passes them on."""

    def test_a_task_that_fails_is_done(self):
        """Its retries are ours: SQS has nothing to repeat."""
        bad, good = make_task(task_path="tests.tasks.fail", args="[]"), make_task()

        self.assertEqual([], failures(batch(body(bad), body(good))))
        self.assertEqual("FAILED", row(bad).status)
        self.assertEqual("SUCCESSFUL", row(good).status)

    def test_a_row_that_is_due_later_is_left(self):
        """A sweep, or a later message, runs it."""
        id = make_task(run_after=timezone.now() + timedelta(hours=1))

        self.assertEqual([], failures(batch(body(id))))
        self.assertEqual(("READY", 0), (row(id).status, row(id).attempt))

    def test_rows_that_are_not_there_are_done(self):
        """Purged, rolled back, of another backend: a repetition would find the same."""
        id = make_task(backend="other")

        self.assertEqual([], failures(batch(body(uuid4()), body(id))))

    def test_nothing_starts_in_the_last_ten_seconds(self):
        """What is not reached comes again, and its rows are as they were."""
        ids = [make_task() for _ in range(3)]

        def seconds() -> float:
            return 9.9 if ScheduledTask.objects.filter(status="SUCCESSFUL").exists() else 300

        event = batch(*map(body, ids))
        with self.assertLogs("dbtasks.aws", "WARNING"):
            answer = handler(event, LambdaContext(seconds))

        left = [{"itemIdentifier": record["messageId"]} for record in event["Records"][1:]]
        self.assertEqual({"batchItemFailures": left}, answer)
        self.assertEqual(["SUCCESSFUL", "READY", "READY"], [row(id).status for id in ids])

    def test_the_database_is_away(self):
        """All messages come again; none is counted as done."""
        id = make_task()
        event = batch(body(id), body(id))
        connections[DB].close()
        nowhere = {"NAME": "/nowhere/at/all"}
        with (
            mock.patch.dict(connections[DB].settings_dict, nowhere),
            self.assertLogs("dbtasks.aws", "ERROR"),
        ):
            found = failures(event)
        connections[DB].close()

        self.assertEqual([0, 1], found)
        self.assertEqual([], failures(event))
        self.assertEqual("SUCCESSFUL", row(id).status)

    def test_what_is_none_of_ours_is_dropped(self):
        """It would come again for days. What it says is not logged: it is not ours to read."""
        id = make_task()
        foreign = [
            "",
            "secret",
            "[]",
            "null",
            '"x"',
            "[" * 100_000,
            {},
            {"type": "mail", "to": "secret"},
            body(id, dbtasks=2),
            body(id, dbtasks=True),
            body(id, backend=["default"]),
            body(id, backend="nobody's"),
            body("secret"),
            body(id, queue=None),
            body(id) | {"id": 7},
            body(id) | {"id": ["x"]},
        ]
        with self.assertLogs("dbtasks.aws", "ERROR") as logs:
            self.assertEqual([], failures(batch(*foreign)))

        self.assertEqual(len(foreign), len(logs.output))
        self.assertNotIn("secret", str(logs.output))
        self.assertEqual("READY", row(id).status)

    def test_an_id_is_found_however_it_is_written(self):
        """In capitals, and without hyphens."""
        id = make_task()

        self.assertEqual([], failures(batch(body(id.hex.upper()))))
        self.assertEqual("SUCCESSFUL", row(id).status)

    def test_a_drain_runs_one_queue(self):
        """Best first, as long as there is time."""
        ids = [make_task(), make_task(), make_task(queue_name="mail")]

        self.assertEqual([], failures(batch(body(None) | {"id": None})))
        self.assertEqual(["SUCCESSFUL", "SUCCESSFUL", "READY"], [row(id).status for id in ids])

    def test_what_we_write_is_what_we_read(self):
        """The push and the function agree."""
        for message in (Message("default", str(uuid4()), "mail"), Message("b", None, "é")):
            self.assertEqual(message, aws.events.read(body_of(message)))

    def test_a_task_sees_nothing_of_the_function(self):
        """Neither its language nor its time zone."""
        with translation.override("de"), timezone.override("Asia/Tokyo"):
            look = look_around.enqueue()
            self.assertEqual([], failures(batch(body(look.id))))
        look.refresh()

        self.assertEqual(["UTC", "en-us"], look.return_value[:2])

    def test_connections_are_closed_before_and_after(self):
        """A function that was frozen for an hour has dead ones, and no request begins here."""
        with mock.patch.object(function, "close_old_connections") as close:
            handler(batch(body(make_task())), LambdaContext())
            self.assertEqual(2, close.call_count)
            with mock.patch.object(function, "run_hinted", side_effect=MemoryError):
                self.assertRaises(MemoryError, handler, batch(body(uuid4())), LambdaContext())
            self.assertEqual(4, close.call_count)

    def test_a_running_task_is_asked_to_end_before_the_function_is_killed(self):
        """It gives its row back, for the next message."""
        id = make_task(task_path="tests.support.tasks.obey", args="[]")
        handler(batch(body(id)), LambdaContext(lambda: 10.2))

        self.assertEqual("READY", row(id).status)


class EventTests(TransactionTestCase):
    """What else Lambda may call the function with."""

    SCHEDULES = (
        {"dbtasks": "sweep"},
        {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
        {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"},
    )
    FOREIGN = (
        None,
        [],
        {},
        "sweep",
        {"Records": []},
        {"Records": "x"},
        {"Records": [{"EventSource": "aws:sns", "Sns": {}}]},
        {"Records": [record("{}"), {"eventSource": "aws:s3"}]},
        {"requestContext": {}, "httpMethod": "GET"},
        {"source": "aws.s3"},
    )

    def test_a_schedule_sweeps(self):
        """It runs what is due, of whatever queue, and answers with counts that are JSON."""
        for event in self.SCHEDULES:
            with self.subTest(event):
                id = make_task(queue_name="mail")
                answer = handler(event, LambdaContext())

                self.assertEqual(
                    (1, 1, False), (answer["ran"], answer["succeeded"], answer["due_left"])
                )
                self.assertEqual("SUCCESSFUL", row(id).status)
                self.assertNotIn("results", json.loads(json.dumps(answer)))

    def test_when_something_is_scheduled_the_answer_says_for_when(self):
        """As JSON."""
        due = timezone.now() + timedelta(hours=1)
        make_task(run_after=due)

        said = handler({"dbtasks": "sweep"}, LambdaContext())["next_due"]
        self.assertLess(abs(timezone.datetime.fromisoformat(said) - due), timedelta(seconds=5))

    def test_a_sweep_leaves_time_for_its_last_task(self):
        """Half a minute, or half of a short function."""
        for left, expected in {900: 870, 300: 270, 40: 20}.items():
            with mock.patch.object(function, "sweep_through") as sweep:
                sweep.return_value = mock.MagicMock(seconds=0.0, next_due=None)
                handler({"dbtasks": "sweep"}, LambdaContext(lambda left=left: left))
            self.assertAlmostEqual(expected, sweep.mock_calls[0].kwargs["max_seconds"], delta=1)

    def test_another_backend_is_swept_by_name(self):
        """Without one it is the default backend."""
        with mock.patch.object(function, "sweep_through") as sweep:
            sweep.return_value = mock.MagicMock(seconds=0.0, next_due=None)
            handler({"dbtasks": "sweep", "backend": "mail"}, LambdaContext())
            handler({"dbtasks": "sweep"}, None)

        self.assertEqual(["mail", "default"], [call.args[1] for call in sweep.mock_calls])

    def test_the_event_may_say_how_often_it_comes(self):
        """So that a schedule with missed="skip" fires. A schedule of EventBridge may say it too."""
        events = (
            {"dbtasks": "sweep"},
            {"dbtasks": "sweep", "interval": 300},
            {"source": "aws.scheduler", "interval": 0.5},
        )
        with mock.patch.object(function, "sweep_through") as sweep:
            sweep.return_value = mock.MagicMock(seconds=0.0, next_due=None)
            for event in events:
                handler(event, None)

        self.assertEqual([60, 300, 0.5], [call.kwargs["interval"] for call in sweep.mock_calls])
        for interval in (0, -1, "300", True, None, float("nan"), float("inf"), 604_801):
            with self.subTest(interval), self.assertRaisesMessage(ValueError, "'interval' must be"):
                handler({"dbtasks": "sweep", "interval": interval}, None)

    def test_other_events_are_errors(self):
        """The error says what the function takes."""
        for event in self.FOREIGN:
            with self.subTest(event):
                self.assertFalse(is_ours(event))
                with self.assertRaisesMessage(TypeError, "is_ours(event)"):
                    handler(event, LambdaContext())

    def test_a_function_may_get_messages_of_others(self):
        """is_ours() is False for them, so that they are not dropped."""
        for event in self.SCHEDULES:
            self.assertTrue(is_ours(event))
        self.assertTrue(is_ours(batch(body(uuid4()))))
        self.assertFalse(is_ours(batch({"type": "mail"}, "x")))


class DeploymentTests(SimpleTestCase):
    """demo/deployment/lambda"""

    def test_the_handler(self):
        """Importing it sets Django up; it sweeps."""
        code = """
import handler
from django.core.management import call_command
call_command("migrate", verbosity=0)
print(handler.handler({"dbtasks": "sweep"}, None))
"""
        files = {"../handler.py": Path(DEPLOYMENT, "handler.py").read_text()}
        done = run_in_project(files, "-c", code)

        self.assertEqual("", done.stderr)
        self.assertIn("'ran': 0", done.stdout)

    def test_the_template(self):
        """It names what is there, and its numbers fit together."""
        loader = type("Loader", (yaml.SafeLoader,), {})
        loader.add_multi_constructor("!", lambda loader, tag, node: {tag: node.value})
        template = yaml.load(Path(DEPLOYMENT, "template.yaml").read_text(), loader)
        resources = template["Resources"]
        tasks, queue = resources["Tasks"]["Properties"], resources["Queue"]["Properties"]
        hint, sweep = (tasks["Events"][name]["Properties"] for name in ("Hint", "Sweep"))

        self.assertEqual("handler.handler", tasks["Handler"])
        self.assertGreaterEqual(queue["VisibilityTimeout"], 6 * tasks["Timeout"])
        self.assertLessEqual(queue["VisibilityTimeout"], 43_200)
        self.assertNotIn("FifoQueue", queue)
        self.assertEqual(["ReportBatchItemFailures"], hint["FunctionResponseTypes"])
        self.assertTrue(is_ours(json.loads(sweep["Input"])))
        [statement] = resources["PushPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        self.assertEqual("sqs:SendMessage", statement["Action"])
