"""The admin of a site whose backends use two databases, and of one without time zones."""

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.tasks import task_backends
from django.test import TestCase, override_settings
from django.urls import reverse
from django.utils import timezone

from dbtasks import process_tasks, run_task
from dbtasks.base.result import FAILED, READY
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.runner.scheduler import Scheduler
from dbtasks.store import periodic, workers

from ..support.schedules import REMEMBER, TELL
from ..tasks import add, fail

OURS = "dbtasks.backend.DatabaseBackend"
TWO = {
    "default": {"BACKEND": OURS, "QUEUES": []},
    "second": {"BACKEND": OURS, "QUEUES": [], "OPTIONS": {"database": "other"}},
}
FORM = {
    "key": "mine",
    "backend": "second",
    "task_path": REMEMBER,
    "spec": "1h",
    "timezone": "UTC",
    "args": "[1]",
    "kwargs": "{}",
    "retain": "",
    "missed": "latest",
    "overlap": "on",
}
MODELS = ("scheduledtask", "periodictask", "worker")


def page(model: str, kind: str = "changelist", *args: Any) -> str:
    """Return the path of that page."""
    return reverse(f"admin:dbtasks_{model}_{kind}", args=args)


class SignedInCase(TestCase):
    """A superuser."""

    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("boss"))


@override_settings(TASKS=TWO)
class TwoDatabasesTests(SignedInCase):
    """Each backend is shown and changed in its own database."""

    databases = {"default", "other"}

    def failed(self, alias: str) -> ScheduledTask:
        """Return the row of a task that has failed in that backend."""
        result = fail.using(backend=alias).enqueue(f"in {alias}")
        run_task(result.id, backend=alias)
        db = task_backends[alias].database
        return ScheduledTask.objects.using(db).get(pk=result.id)

    def test_each_list_shows_one_database(self) -> None:
        """The first by default, the other by the filter."""
        rows = {alias: self.failed(alias) for alias in TWO}
        for alias, query, other in (
            ("default", "", "second"),
            ("second", "?database=other", "default"),
        ):
            response = self.client.get(page("scheduledtask") + query)

            self.assertContains(response, str(rows[alias].pk))
            self.assertNotContains(response, str(rows[other].pk))
            self.assertContains(response, "other (second)")

    def test_links_keep_the_database(self) -> None:
        """From the list to the row, its buttons and back; with a state besides."""
        row = self.failed("second")
        listed = self.client.get(page("scheduledtask") + "?database=other&state=failed").content
        self.assertIn(b"_changelist_filters=state%3Dfailed%26database%3Dother", listed)

        # A link without it, as in an e-mail.
        detail = self.client.get(page("scheduledtask", "change", row.pk))
        self.assertContains(detail, f'action="{page("scheduledtask")}?database=other"')
        data = {"action": "retry_failed", "_selected_action": [row.pk], "from_detail": "1"}
        done = self.client.post(page("scheduledtask") + "?database=other", data, follow=True)

        self.assertContains(done, "1 task was made ready")
        self.assertContains(done, str(row.pk))
        row.refresh_from_db()
        self.assertEqual(READY, row.status)

    def test_rows_are_deleted_in_their_database(self) -> None:
        """By the page of a row."""
        row, kept = self.failed("second"), self.failed("default")
        self.client.post(page("scheduledtask", "delete", row.pk), {"post": "yes"})

        self.assertFalse(ScheduledTask.objects.using("other").exists())
        self.assertEqual(FAILED, ScheduledTask.objects.get(pk=kept.pk).status)

    def test_workers_of_both_are_shown(self) -> None:
        """The page of each, too."""
        workers.register("other", "far", "second", "", 1, 1)
        response = self.client.get(page("worker") + "?database=other")

        self.assertContains(response, "far")
        self.assertNotContains(self.client.get(page("worker")), "far")
        self.assertContains(self.client.get(page("worker", "change", "far")), "second")

    def test_a_schedule_is_made_where_its_backend_is(self) -> None:
        """So it fires there."""
        response = self.client.post(page("periodictask", "add"), FORM, follow=True)

        self.assertContains(response, "mine")
        self.assertFalse(PeriodicTask.objects.exists())
        row = PeriodicTask.objects.using("other").get()
        PeriodicTask.objects.using("other").update(next_tick=periodic.now("other") - timedelta(1))
        Scheduler(task_backends["second"]).catch_up()
        self.assertEqual(1, len(process_tasks(backend="second")))

        listed = page("periodictask") + "?database=other"
        data = {"action": "pause", "_selected_action": [row.pk]}
        self.client.post(listed, data)
        row.refresh_from_db()
        self.assertTrue(row.paused)
        self.assertContains(self.client.get(listed), "Successful")

    def test_a_schedule_is_changed_and_deleted_where_it_is(self) -> None:
        """A schedule of the other database with the same number stays."""
        for alias in TWO:
            self.client.post(page("periodictask", "add"), FORM | {"backend": alias})
        row, first = PeriodicTask.objects.using("other").get(), PeriodicTask.objects.get()
        PeriodicTask.objects.filter(pk=first.pk).update(id=row.pk)
        query = "?_changelist_filters=database%3Dother"
        url = page("periodictask", "change", row.pk) + query

        response = self.client.post(url, FORM | {"spec": "2h"})
        self.assertRedirects(response, page("periodictask") + "?database=other")
        row.refresh_from_db()
        self.assertEqual(("2h", "1h"), (row.spec, PeriodicTask.objects.get().spec))
        self.assertContains(
            self.client.post(url, FORM | {"backend": "default"}), "another database"
        )
        self.client.post(page("periodictask", "delete", row.pk) + query, {"post": "yes"})
        self.assertFalse(PeriodicTask.objects.using("other").exists())
        self.assertTrue(PeriodicTask.objects.exists())

    def test_an_unknown_database_is_not_asked(self) -> None:
        """The first is shown."""
        row = self.failed("default")

        self.assertContains(self.client.get(page("scheduledtask") + "?database=x"), str(row.pk))


class PagesTests(SignedInCase):
    """Every page, with and without USE_TZ."""

    def assert_pages(self) -> None:
        """Fail if one of the pages does not show."""
        entries = task_backends["default"].config.periodic.values()
        periodic.declare("default", "default", entries)
        self.client.post(page("periodictask", "add"), FORM | {"backend": "default"})
        workers.register("default", "near", "default", "", 1, 1)
        add.enqueue(1, 2)
        fail.enqueue()
        process_tasks()
        add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
        late = PeriodicTask.objects.get(key=TELL)
        periodic_page = page("periodictask")
        for action in ("run_now", "pause"):
            data = {"action": action, "_selected_action": [late.pk]}
            self.assertEqual(302, self.client.post(periodic_page, data).status_code)
        self.assertEqual(2, PeriodicTask.objects.count())

        for model in MODELS:
            self.assertEqual(200, self.client.get(page(model)).status_code)
        for model, table in zip(MODELS, (ScheduledTask, PeriodicTask, Worker), strict=True):
            for row in table.objects.all():
                for kind in ("change", "history"):
                    response = self.client.get(page(model, kind, row.pk))
                    self.assertEqual(200, response.status_code, (model, kind))
        self.assertContains(self.client.get(page("scheduledtask")), ">in 59 min")
        self.assertRegex(self.client.get(periodic_page).content.decode(), r">in \d+(\.\d s| min)")

    @override_settings(TASKS={"default": {"BACKEND": OURS, "OPTIONS": {"periodic": {TELL: "1h"}}}})
    def test_with_time_zones(self) -> None:
        """USE_TZ = True, Django's default."""
        self.assert_pages()

    @override_settings(
        TASKS={"default": {"BACKEND": OURS, "OPTIONS": {"periodic": {TELL: "1h"}}}},
        USE_TZ=False,
        TIME_ZONE="America/New_York",
    )
    def test_without_time_zones(self) -> None:
        """USE_TZ = False."""
        self.assert_pages()
