"""Schedules from outside: many processes, the command, the admin."""

import json
import signal
from datetime import timedelta
from io import StringIO
from itertools import pairwise
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import TestCase, override_settings
from django.urls import reverse
from django.utils import timezone

from dbtasks import Periodic
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.runner.scheduler import Scheduler
from dbtasks.store import periodic as store

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase, freeze
from ..support.rows import DB
from ..support.schedules import REMEMBER, TELL, fired, overdue, schedules
from ..support.waiting import until

SECOND = timedelta(seconds=1)


class ProcessesTests(ProcessTestCase):
    """Runners in processes of their own, which are killed, frozen and restarted."""

    def runner(self, *flags: str, **specs: Any) -> Child:
        """Start a runner with those schedules, by the names of tasks in tests.support.tasks."""
        own = {f"tests.support.tasks.{name}": values for name, values in specs.items()}
        return self.start("taskrunner", "-w", 1, *flags, TEST_PERIODIC=json.dumps(own))

    def wait_for_ticks(self, count: int, **values: Any) -> None:
        end = len(fired(**values)) + count
        until(lambda: len(fired(**values)) >= end, f"{count} ticks")

    def test_ten_runners_make_one_row_a_tick(self):
        """While some are killed and others start: no tick is lost, none comes twice."""
        every = {"spec": "1s", "missed": "all"}
        running = []
        # Two at a time: a small machine takes long to start ten.
        for _ in range(5):
            pair = [self.runner(tell_tick=every) for _ in range(2)]
            for child in pair:
                child.wait_for("Stop with Ctrl-C")
            running += pair
        for n in range(3):
            self.wait_for_ticks(1)
            running[n].kill()
            running.append(self.runner(tell_tick=every))
        self.wait_for_ticks(2)
        for child in running[3:]:
            child.signal(signal.SIGTERM)
        for child in running[3:]:
            child.end()
        ticks = fired()

        self.assertGreater(len(ticks), 5)
        self.assertEqual({SECOND}, {after - before for before, after in pairwise(ticks)})
        self.assertEqual(len(ticks), ScheduledTask.objects.count())
        self.assertEqual(1, PeriodicTask.objects.count())

    def test_two_deployments_with_different_settings(self):
        """Each fires its own, and catches up with what it missed while it was down."""
        first = self.runner(tell_tick={"spec": "1s"})
        self.runner(thread_name={"spec": "1s", "missed": "all"})
        other = "tests.support.tasks.thread_name"
        self.wait_for_ticks(2, schedule_key=TELL)
        self.wait_for_ticks(2, schedule_key=other)
        first.kill()
        seen = len(fired(schedule_key=TELL))
        self.wait_for_ticks(3, schedule_key=other)
        self.assertLessEqual(len(fired(schedule_key=TELL)), seen)
        self.runner(tell_tick={"spec": "1s"})
        self.wait_for_ticks(2, schedule_key=TELL)

        ticks = fired(schedule_key=other)
        self.assertEqual({SECOND}, {after - before for before, after in pairwise(ticks)})
        self.assertIsNotNone(PeriodicTask.objects.get(key=TELL).skipped_tick)

    def test_a_frozen_runner_catches_up_once(self):
        """Of all that it has missed the latest is run."""
        child = self.runner(tell_tick={"spec": "1s"})
        self.wait_for_ticks(2)
        freeze(child.process.pid)
        self.addCleanup(child.signal, signal.SIGCONT)
        before = fired()[-1]
        until(lambda: store.now(DB) >= before + 4 * SECOND, "Four more ticks")
        child.signal(signal.SIGCONT)
        self.wait_for_ticks(2)
        gaps = [b - a for a, b in pairwise([tick for tick in fired() if tick >= before])]

        self.assertGreaterEqual(max(gaps), 3 * SECOND)
        self.assertEqual(1, len([gap for gap in gaps if gap >= 3 * SECOND]))

    def test_a_runner_without_periodic_fires_none(self):
        """taskrunner --no-periodic."""
        child = self.runner("--no-periodic", tell_tick={"spec": "1s"})
        child.wait_for("Stop with Ctrl-C")

        self.assertEqual(0, PeriodicTask.objects.count())

    def test_wrong_settings_keep_a_runner_from_starting(self):
        """With the sentence, and without a traceback."""
        for specs, said in (
            ({"gone": {"spec": "1h"}}, "is not a task that may be run"),
            ({"tell_tick": {"spec": "61 * * * *"}}, "Minute '61' is out of range"),
        ):
            child = self.runner(**specs)
            self.assertEqual(1, child.end())
            self.assertIn(said, child.stderr)
            self.assertNotIn("Traceback", child.stderr)


class CommandTests(TestCase):
    """manage.py dbtasks periodic"""

    def command(self, *arguments: Any) -> str:
        out, self.err = StringIO(), StringIO()
        call_command("dbtasks", "periodic", *arguments, stdout=out, stderr=self.err)
        return out.getvalue()

    def test_it_lists_what_there_is(self):
        """Tab-separated when piped: also what no runner has started with yet."""
        with schedules(
            {TELL: Periodic("0 3 * * *", timezone="Asia/Tokyo"), REMEMBER: Periodic("1h", [1])}
        ) as own:
            new = self.command().splitlines()
            Scheduler(own).catch_up()
            store.pause(DB, [PeriodicTask.objects.get(key=REMEMBER).pk])
            header, remember, tell = (line.split("\t") for line in self.command().splitlines())

        self.assertEqual(["new", "new"], [line.split("\t")[4] for line in new[1:]])
        self.assertEqual(
            ["key", "task", "schedule", "timezone", "state", "next", "last", "status"], header
        )
        self.assertEqual([TELL, TELL, "0 3 * * *", "Asia/Tokyo", "active"], tell[:5])
        self.assertTrue(tell[5].endswith("T18:00:00Z"), tell)
        self.assertEqual(["paused", "-", "-", "-"], remember[4:])

    def test_json_has_one_object_a_line(self):
        """With as many next runs as asked for, in UTC."""
        with schedules({TELL: "1h"}) as own:
            Scheduler(own).catch_up()
            overdue(SECOND)
            Scheduler(own).catch_up()
            shown = json.loads(self.command("--json", "--next", 5))

        self.assertEqual(5, len(shown["next"]))
        self.assertEqual((TELL, "READY"), (shown["key"], shown["status"]))
        self.assertTrue(shown["last"].endswith("Z"))

    def test_a_schedule_is_run_paused_and_resumed(self):
        """By its key."""
        with schedules({REMEMBER: Periodic("1h", [1], overlap=False)}) as own:
            Scheduler(own).catch_up()
            self.assertEqual(f"{REMEMBER} runs now.\n", self.command("--run", REMEMBER))
            with self.assertRaises(SystemExit):
                self.command("--run", REMEMBER)
            self.assertIn("the run before has not finished", self.err.getvalue())
            self.command("--pause", REMEMBER)
            self.assertTrue(PeriodicTask.objects.get().paused)
            self.command("--resume", REMEMBER)
            self.assertFalse(PeriodicTask.objects.get().paused)

        self.assertEqual([1], ScheduledTask.objects.get().args)

    def test_wrong_input_has_its_sentence(self):
        """And the exit code 1."""
        with schedules({}):
            with self.assertRaises(SystemExit) as raised:
                self.command("--pause", "gone")
            self.assertEqual(1, raised.exception.code)
            self.assertIn("There is no schedule 'gone'", self.err.getvalue())
            with self.assertRaisesMessage(CommandError, "no dbtasks backend 'gone'"):
                self.command("--backend", "gone")
            with self.assertRaisesMessage(CommandError, "is not a valid number of runs"):
                self.command("--next", "0")


class AdminTests(TestCase):
    """Schedules in the admin"""

    def setUp(self) -> None:
        self.enterContext(override_settings(TASKS=backend(OPTIONS={"periodic": {TELL: "1h"}})))
        self.client.force_login(User.objects.create_superuser("admin"))

    def post(self, **values: Any) -> Any:
        form = {
            "key": "mine",
            "backend": "default",
            "task_path": REMEMBER,
            "spec": "*/5 * * * *",
            "timezone": "Europe/Berlin",
            "args": "[1]",
            "kwargs": "{}",
            "retain": "",
            "missed": "latest",
            "overlap": "on",
        }
        return self.client.post(reverse("admin:dbtasks_periodictask_add"), form | values)

    def act(self, action: str, row: PeriodicTask) -> Any:
        data = {"action": action, "_selected_action": [row.pk]}
        return self.client.post(reverse("admin:dbtasks_periodictask_changelist"), data, follow=True)

    def declared(self) -> PeriodicTask:
        from django.tasks import task_backends

        store.declare(DB, "default", task_backends["default"].config.periodic.values())
        return PeriodicTask.objects.get(key=TELL)

    def test_a_schedule_is_made_and_changed(self):
        """It begins with its next tick, and fires what it says."""
        self.assertEqual(302, self.post().status_code)
        row = PeriodicTask.objects.get()
        url = reverse("admin:dbtasks_periodictask_change", args=[row.pk])
        page = self.client.get(url)
        self.client.post(
            url,
            page.context["adminform"].form.initial | {"args": "[2]", "kwargs": "{}", "spec": "1h"},
        )
        changed = PeriodicTask.objects.get()

        self.assertEqual(("admin", [1], "Europe/Berlin"), (row.origin, row.args, row.timezone))
        self.assertGreater(row.next_tick, store.now(DB))
        self.assertEqual(([2], "1h"), (changed.args, changed.spec))

    def test_what_is_wrong_is_said_in_the_form(self):
        """With the sentences that settings get; nothing is written."""
        for values, said in (
            ({"spec": "61 * * * *"}, "Minute &#x27;61&#x27; is out of range"),
            ({"spec": "0 0 30 2 *"}, "a date that never comes"),
            ({"spec": "soon"}, "is not a valid schedule"),
            ({"timezone": "Mars"}, "is not a valid time zone"),
            ({"task_path": "os.system"}, "is not a task that may be run"),
            ({"args": "[1, 2]"}, "too many positional arguments"),
            ({"args": "[]"}, "missing a required argument"),
            ({"args": '{"a": 1}'}, "args must be a list"),
            ({"kwargs": "[1]"}, "kwargs must be a dict"),
            ({"args": "[1"}, "Enter a valid JSON"),
            ({"retain": "for ever"}, "is not a duration"),
            ({"key": TELL}, "has this key"),
            ({"backend": "gone"}, "Select a valid choice"),
        ):
            with self.subTest(values):
                page = self.post(**values)
                self.assertContains(page, said)
                # Beside the field, not above the form.
                self.assertFalse(page.context["adminform"].form.non_field_errors())
                self.assertIn(next(iter(values)), page.context["adminform"].form.errors)
        self.assertEqual(0, PeriodicTask.objects.count())

    def test_what_settings_say_is_not_changed_here(self):
        """It can be seen, paused, and run."""
        row = self.declared()
        url = reverse("admin:dbtasks_periodictask_change", args=[row.pk])

        self.assertContains(self.client.get(url), TELL)
        self.assertEqual(403, self.client.post(url, {"spec": "2h"}).status_code)
        delete = reverse("admin:dbtasks_periodictask_delete", args=[row.pk])
        self.assertEqual(403, self.client.post(delete, {"post": "yes"}).status_code)

    def test_schedules_are_run_paused_and_resumed(self):
        """And the list shows the next and the last run."""
        row = self.declared()
        self.assertContains(self.act("run_now", row), "runs now")
        self.assertContains(self.act("pause", row), "1 schedule was paused")
        self.assertTrue(PeriodicTask.objects.get().paused)
        self.assertContains(self.act("resume", row), "1 schedule was resumed")
        page = self.client.get(reverse("admin:dbtasks_periodictask_changelist"))
        [run] = ScheduledTask.objects.all()

        self.assertContains(page, reverse("admin:dbtasks_scheduledtask_change", args=[run.pk]))
        self.assertContains(page, "1h (UTC)")

    def test_a_schedule_of_people_is_deleted(self):
        """Its runs stay."""
        self.post()
        row = PeriodicTask.objects.get()
        self.act("run_now", row)
        self.client.post(
            reverse("admin:dbtasks_periodictask_delete", args=[row.pk]), {"post": "yes"}
        )

        self.assertEqual((0, 1), (PeriodicTask.objects.count(), ScheduledTask.objects.count()))

    def test_a_schedule_that_no_runner_has_any_more_is_deleted(self):
        """Every live runner has started, and reported its schedules, since it was last seen."""
        row = self.declared()
        self.enterContext(override_settings(TASKS=backend()))
        url = reverse("admin:dbtasks_periodictask_delete", args=[row.pk])
        minute = timedelta(minutes=1)
        runner = Worker(worker_id="w", backend="default", state="live", beat_at=timezone.now())
        for started, seen, code in ((2, 1, 403), (0, 5, 403), (5, 6, 302)):
            runner.started_at = timezone.now() - started * minute
            runner.save()
            PeriodicTask.objects.update(seen_at=timezone.now() - seen * minute)
            with self.subTest(started=started, seen=seen):
                self.assertEqual(code, self.client.post(url, {"post": "yes"}).status_code)

        self.assertEqual(0, PeriodicTask.objects.count())

    def look_only(self) -> None:
        """Go on as a user who may do no more than look."""
        viewer = User.objects.create_user("viewer", is_staff=True)
        viewer.user_permissions.add(Permission.objects.get(codename="view_periodictask"))
        self.client.force_login(viewer)

    def test_who_may_only_look_sees_no_secret(self):
        """Arguments are masked as those of tasks are."""
        self.post()
        PeriodicTask.objects.update(kwargs={"token": "open-sesame", "size": 42})
        self.look_only()
        url = reverse("admin:dbtasks_periodictask_change", args=[PeriodicTask.objects.get().pk])
        page = self.client.get(url)

        self.assertContains(page, "42")
        self.assertNotContains(page, "open-sesame")

    def test_who_may_only_look_can_do_nothing(self):
        """No action, no form."""
        row = self.declared()
        self.look_only()
        self.act("pause", row)
        self.act("run_now", row)

        self.assertEqual(403, self.post().status_code)
        self.assertFalse(PeriodicTask.objects.get().paused)
        self.assertEqual(0, ScheduledTask.objects.count())
