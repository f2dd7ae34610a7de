"""The queue in Django's admin, through its real pages."""

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from types import SimpleNamespace
from unittest import mock

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.tasks import task
from django.test import (
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
    skipUnlessDBFeature,
)
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape as html_of

from dbtasks import store
from dbtasks.admin import actions, changelist, columns, mask, render, tasks
from dbtasks.base import registry
from dbtasks.base.result import FAILED, READY, RUNNING, SUCCESSFUL, class_path
from dbtasks.base.secrets import NOTE, is_secret
from dbtasks.calls import uuid7
from dbtasks.exceptions import TaskCancelled
from dbtasks.models import Hold, ScheduledTask
from dbtasks.options import Options
from dbtasks.store import Place, workers

from ..support.processes import ProcessTestCase

LIST = "admin:dbtasks_scheduledtask_changelist"
HOUR = timedelta(hours=1)
BOOM = ["builtins.ValueError", "Traceback (most recent call last):\nValueError: boom"]
CANCELLED = [class_path(TaskCancelled), str(TaskCancelled())]
# The columns that tell a state.
STATES = {
    "due": {"status": READY},
    "scheduled": {"status": READY, "hold": Hold.SCHEDULED, "run_after": timezone.now() + HOUR},
    "quarantined": {"status": READY, "hold": Hold.QUARANTINED, "lost": 2},
    "running": {"status": RUNNING, "worker_id": "w1", "attempt": 1},
    "stopping": {"status": RUNNING, "worker_id": "w1", "attempt": 1, "cancel_requested": True},
    "successful": {"status": SUCCESSFUL, "worker_ids": ["w1"]},
    "failed": {"status": FAILED, "worker_ids": ["w1"], "errors": [BOOM]},
    "cancelled": {"status": FAILED, "errors": [CANCELLED]},
}


@task
def login(user, password):
    """Take a secret by position."""


@task
def connect(host, *secrets, author="", **credentials):
    """Take any number of secrets."""


@task(takes_context=True)
def greet(context, author, keywords):
    """Take no secret."""


class QueueElsewhere:
    """Sends the queue to another database."""

    def db_for_read(self, model, **hints):
        return "other" if model is ScheduledTask else None

    db_for_write = db_for_read


def make_row(state="due", db="default", **values):
    """Store a row in that state; return it."""
    row = {
        "id": uuid7(),
        "task_path": "shop.tasks.ship",
        "backend": "default",
        "queue_name": "default",
        "priority": 0,
        "args": [],
        "kwargs": {},
        "enqueued_at": timezone.now(),
        "hold": "",
        **STATES[state],
    }
    if row["status"] in (SUCCESSFUL, FAILED):
        row["finished_at"] = row["last_attempted_at"] = row["started_at"] = timezone.now()
    return ScheduledTask.objects.using(db).create(**(row | values))


def status_of(row):
    """Return the status of the row as it stands; None if it is gone."""
    rows = ScheduledTask.objects.using(row._state.db).filter(pk=row.pk)
    return rows.values_list("status", flat=True).first()


class AdminCase(TestCase):
    """A signed-in superuser, and shortcuts to the pages."""

    @classmethod
    def setUpTestData(cls):
        cls.user = User.objects.create_superuser("boss")

    def setUp(self):
        self.client.force_login(self.user)

    def list(self, **query):
        """Return the list page."""
        return self.client.get(reverse(LIST), query)

    def detail(self, row):
        """Return the HTML of the row's page."""
        response = self.client.get(reverse("admin:dbtasks_scheduledtask_change", args=[row.pk]))
        self.assertEqual(200, response.status_code)
        return response.content.decode()

    def act(self, action, *rows, follow=True, query="", **fields):
        """Post the action for the rows; return the response."""
        fields |= {"action": action, "_selected_action": [str(row.pk) for row in rows]}
        return self.client.post(reverse(LIST) + query, fields, follow=follow)

    def sign_in(self, *permissions):
        """Sign in somebody with those permissions alone."""
        user = User.objects.create_user("staff", is_staff=True)
        names = [f"{name}_scheduledtask" for name in permissions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        self.client.force_login(user)


class ListTests(AdminCase):
    """What the list shows."""

    def test_each_state_is_named(self):
        """A row's state stands in the list in words."""
        for state, label in render.STATES.items():
            with self.subTest(state):
                ScheduledTask.objects.all().delete()
                make_row(state)

                self.assertContains(self.list(), f'"dbtasks-state {state}">{label}</span>')

    def test_a_failed_row_tells_why_in_one_line(self):
        """The exception's class and the first line of its message stand in the list."""
        make_row("failed")

        self.assertContains(self.list(), ">ValueError: boom</span>")

    def test_the_state_filter_finds_its_rows(self):
        """Cancelled rows are listed as failed, those that are asked to stop as running."""
        for state in STATES:
            make_row(state, task_path=f"shop.tasks.{state}")
        listed = {"cancelled": "failed", "stopping": "running"}

        for state in STATES:
            with self.subTest(state):
                choice = listed.get(state, state)
                shown = {row.task_path for row in self.list(state=choice).context["cl"].result_list}
                expected = {f"shop.tasks.{s}" for s in STATES if listed.get(s, s) == choice}
                self.assertEqual(expected, shown)

    def test_statements_do_not_grow_with_rows(self):
        """The list page takes five statements, two for the session, however many the rows."""
        for count in (1, 20):
            for n in range(count):
                make_row(list(STATES)[n % 6], args=[n], kwargs={"token": "s3cret"})
            with self.subTest(rows=count), self.assertNumQueries(5):
                self.list()

    def test_a_long_table_is_not_counted_whole(self):
        """Beyond the limit the number of rows is a lower bound, and so are the pages."""
        for _ in range(4):
            make_row()

        with mock.patch.object(changelist, "MAX_COUNT", 3):
            page = self.list()

        self.assertContains(page, "3+ tasks")
        self.assertEqual(3, page.context["cl"].result_count)

    def test_a_row_without_its_function_is_shown(self):
        """Showing a row imports nothing, and needs neither its function nor its backend."""
        row = make_row(
            "failed", task_path="demo.tasks.gone", backend="gone", errors=[["demo.tasks.No", "x"]]
        )
        with mock.patch.dict(sys.modules):
            sys.modules.pop("demo.tasks", None)
            self.assertContains(self.list(), "demo.tasks.gone")
            self.assertIn("demo.tasks.No", self.detail(row))
            self.assertNotIn("demo.tasks", sys.modules)

    def test_url_parameters_cannot_ask_for_arguments(self):
        """A lookup in the URL, which would tell secrets letter by letter, is refused."""
        make_row(kwargs={"password": "hunter2"})

        self.assertEqual(400, self.list(kwargs__contains="h").status_code)

    def test_pages_follow_each_other(self):
        """Every row is on one page, the newest on the first."""
        rows = [make_row() for _ in range(5)]

        for limit in (3, 9):
            with (
                mock.patch.object(changelist, "MAX_COUNT", limit),
                mock.patch.object(tasks.ScheduledTaskAdmin, "list_per_page", 2),
            ):
                shown = [row.pk for n in (1, 2) for row in self.list(p=n).context["cl"].result_list]
            expected = [row.pk for row in reversed(rows)]
            self.assertEqual(expected[: min(limit, 4)], shown)


class SearchTests(AdminCase):
    """What the search finds."""

    def found(self, text):
        """Return the ids that the search lists."""
        response = self.list(q=text)
        self.assertEqual(200, response.status_code)
        return {row.pk for row in response.context["cl"].result_list}

    def test_search_by_id(self):
        """The whole id finds its row, with dashes or without."""
        row, _other = make_row(), make_row()

        self.assertEqual({row.pk}, self.found(str(row.pk)))
        self.assertEqual({row.pk}, self.found(f" {row.pk.hex} "))

    def test_by_the_beginning_of_the_path(self):
        """The beginning of a path finds its rows; wildcards are plain characters."""
        row, _other = make_row(task_path="mail.tasks.send"), make_row()

        self.assertEqual({row.pk}, self.found("mail.ta"))
        self.assertEqual(set(), self.found("m%"))

    def test_only_the_newest_rows_are_searched_by_path(self):
        """A search by path reads a bounded number of rows."""
        rows = [make_row() for _ in range(3)]

        with mock.patch.object(tasks, "SEARCHED", 2):
            self.assertEqual({row.pk for row in rows[1:]}, self.found("shop"))

    def test_nonsense_finds_nothing(self):
        """No search text is an error."""
        make_row()
        for text in ("'; DROP TABLE", "x\0y", "9" * 5000, "\\", "ab-cd", "Ä 💥"):
            with self.subTest(text):
                self.assertEqual(text == "x\0y", bool(self.found(text)))


class SecretTests(AdminCase):
    """What nobody may see."""

    def assert_hidden(self, secret, row):
        """Fail if the secret stands on either page, or nothing stands in its place."""
        for html in (self.list().content.decode(), self.detail(row)):
            self.assertNotIn(secret, html)
            self.assertIn(mask.MASK, html)

    def test_values_of_telling_keys_are_masked(self):
        """Anywhere in the arguments the value of a key such as password is masked."""
        self.assert_hidden("hunter2", make_row(kwargs={"DB_Password": "hunter2"}))
        self.assert_hidden("hunter3", make_row(args=[{"a": [{"token": {"x": ["hunter3"]}}]}]))

    def test_a_secret_by_position_is_masked(self):
        """The function's parameters name its positional arguments."""
        row = make_row(task_path=f"{__name__}.login", args=["bob", "hunter4"])

        self.assert_hidden("hunter4", row)
        self.assertIn("bob", self.detail(row))

    def test_secrets_are_noted_when_they_are_enqueued(self):
        """So the masking process need not know the function; the task sees no more than its own."""
        rows = [
            login.enqueue("bob", "hunter1"),
            login.using(meta={"trace": "x7"}).enqueue("bob", "hunter2"),
            connect.enqueue("db1", "hunter3", "hunter4", author="ada", user="hunter5"),
        ]
        with mock.patch.dict(registry._tasks, clear=True):
            for result in rows:
                html = self.detail(ScheduledTask.objects.get(pk=result.id))
                self.assertNotIn("hunter", html)
                self.assertNotIn(NOTE, html)
            self.assertIn("ada", html)
            self.assertIn("x7", self.detail(ScheduledTask.objects.get(pk=rows[1].id)))
            self.assertNotIn("hunter", self.list().content.decode())

        self.assertEqual(
            [None, {"trace": "x7"}], [login.get_result(r.id).task.meta for r in rows[:2]]
        )

    def test_a_note_that_was_changed_manually_breaks_no_page(self):
        """Whatever it is."""
        for note in (None, [], {"args": 1, "rest": "x", "kwargs": None}):
            self.assertIn("bob", self.detail(make_row(args=["bob"], meta={NOTE: note})))

    def test_a_task_without_secrets_notes_nothing(self):
        """Its meta stays NULL."""
        result = greet.enqueue("ada", ["a", "b"])

        row = ScheduledTask.objects.get(pk=result.id)
        self.assertIsNone(row.meta)
        self.assertIn("ada", self.detail(row))

    def test_names_are_compared_by_words(self):
        """Not by parts of words, unless a long word ends one."""
        options = Options()
        for name in [
            "password",
            "userPassword",
            "db-passwords",
            "dbpassword",
            "PWD",
            "pwd2",
            "pass_phrase",
            "passphrase",
            "pin_code",
            "credential",
            "aws_credentials",
            "PIN",
            "APIKey",
            "api_key",
            "apikey",
            "auth_token",
            "authtoken",
            "X-Auth",
            "Authorization",
            "secrets",
            "OAuthToken",
        ]:
            self.assertTrue(is_secret(name, options.mask), name)
        for name in ("author", "keywords", "monkey", "spin", "pinned", "compass", "tokenizer", ""):
            self.assertFalse(is_secret(name, options.mask), name)
        for name, word in (("ibanNo", "iban_no"), ("my_iban_nos", "iban-no"), ("ibanno", "ibanNo")):
            self.assertTrue(is_secret(name, (word,)), name)
        self.assertFalse(is_secret("iban_none", ("iban_no",)))

    def test_passwords_in_urls_are_masked(self):
        """Wherever the URL stands, and wherever its password is repeated."""
        url = "postgres://bob:hunter2@db.example.com:5432/shop?sslmode=on&api_key=hunter3"
        errors = [["builtins.OSError", f"OSError: {url}: no 'hunter2' for redis://:hunter4@r/0"]]
        html = self.detail(make_row("failed", args=[url], errors=errors))

        self.assertNotIn("hunter", html)
        for part in ("postgres://bob:", "@db.example.com:5432/shop?sslmode=on", "@r/0"):
            self.assertIn(part, html)

    def test_names_of_files_in_a_traceback_stay(self):
        """A secret that is also the name of a folder is masked elsewhere only."""
        frame = 'File "/srv/shop/tasks.py", line 7, in shop_one'
        text = f"Traceback (most recent call last):\n  {frame}\n    raise E\nE: of shop\nshop"
        html = self.detail(make_row("failed", kwargs={"key": "shop"}, errors=[["x.E", text]]))

        self.assertIn(html_of(frame), html)
        self.assertNotIn("of shop", html)

    def test_a_traceback_does_not_repeat_a_secret(self):
        """A masked value that the error quotes is masked there as well."""
        text = "Traceback:\nKeyError: 'no \"hunter\\'5\"' 77001\nhunter'5"
        kwargs = {"secret": "hunter'5", "key": 77001}
        row = make_row("failed", kwargs=kwargs, errors=[["builtins.KeyError", text]])

        for secret in ("hunter", "77001"):
            self.assert_hidden(secret, row)

    def test_results_are_masked(self):
        """Keys of the return value are masked, and secrets of the arguments repeated in it."""
        result = {"api_key": "hunter6", "url": "/?q=hunter7"}
        row = make_row("successful", kwargs={"token": "hunter7"}, return_value=result)

        html = self.detail(row)

        self.assertNotIn("hunter", html)
        self.assertIn("/?q=" + mask.MASK, html)

    def test_short_values_do_not_mask_other_text(self):
        """A secret of few characters is masked by its key alone."""
        row = make_row("failed", kwargs={"key": "e"})

        self.assertIn("ValueError: boom", self.detail(row))

    @override_settings(
        TASKS={
            "default": {
                "BACKEND": "dbtasks.backend.DatabaseBackend",
                "OPTIONS": {"mask": ["iban"]},
            }
        }
    )
    def test_the_option_says_which_keys(self):
        """OPTIONS["mask"] replaces the parts of names that are masked."""
        row = make_row(kwargs={"IBAN_no": "DE0212", "password": "open"})

        self.assert_hidden("DE0212", row)
        self.assertIn("open", self.detail(row))

    def test_markup_in_a_row_is_text(self):
        """Nothing that a row holds becomes markup of the page."""
        evil = "<script>alert(1)</script>"
        errors = [[evil, f"Traceback\n{evil}: {evil}"]]
        values = {"task_path": f"x.{evil}", "queue_name": evil, "args": [evil], "errors": errors}
        row = make_row("failed", worker_ids=[evil], kwargs={evil: evil}, **values)

        for html in (self.list().content.decode(), self.detail(row)):
            self.assertNotIn(evil, html)
            self.assertIn("&lt;script&gt;", html)

    def test_pages_need_no_inline_code(self):
        """The pages work under a strict content security policy."""
        row = make_row("failed", delete_after=timezone.now() - HOUR)
        for html in (
            self.list().content.decode(),
            self.detail(row),
            self.act("delete_expired", row).content.decode(),
        ):
            self.assertNotRegex(html, r"<script(?![^>]* src=)(?![^>]*json)|<style|style=|\son\w+=")


class OtherProcessTests(ProcessTestCase):
    """A web process that has not imported the task."""

    def test_secrets_by_position_are_masked(self):
        """The process that enqueued the task has noted them."""
        code = "from tests.support.elsewhere import login; login.enqueue('bob', *3 * ['hunter2'])"
        self.assertEqual(0, self.start("shell", "-v", "0", "-c", code).end())
        self.client.force_login(User.objects.create_superuser("boss"))
        row = ScheduledTask.objects.get()
        page = reverse("admin:dbtasks_scheduledtask_change", args=[row.pk])

        for url in (reverse(LIST), page):
            response = self.client.get(url)
            self.assertContains(response, "bob")
            self.assertNotContains(response, "hunter")
        self.assertEqual(["bob", *3 * ["hunter2"]], row.args)
        self.assertNotIn("tests.support.elsewhere", sys.modules)


class DetailTests(AdminCase):
    """What the page of one row shows."""

    def test_releases_are_shown(self):
        """Beside the other counts of the row."""
        html = self.detail(make_row("failed", releases=4711))
        self.assertIn("Releases", html)
        self.assertIn("4711", html)

    def test_attempts_stand_beside_their_workers(self):
        """Each start has its worker and, from the last one back, its error."""
        again = ["builtins.OSError", "OSError: again"]
        row = make_row("failed", worker_ids=["w1", "w2", "w3"], errors=[BOOM, again])

        starts = list(columns._starts(row))

        self.assertEqual([(1, "w1", None), (2, "w2", BOOM), (3, "w3", again)], starts)
        self.assertIn("OSError: again", self.detail(row))

    def test_starts_without_an_error(self):
        """Success, a running start and a cancel do not shift the errors."""
        good = make_row("successful", worker_ids=["w1", "w2"], errors=[BOOM])
        live = make_row("running", worker_ids=["w1"], worker_id="w2", errors=[BOOM])
        gone = make_row("cancelled", worker_ids=["w1"], errors=[BOOM, CANCELLED])
        lost = make_row("failed", worker_ids=[], errors=[BOOM])

        self.assertEqual([(1, "w1", BOOM), (2, "w2", None)], list(columns._starts(good)))
        self.assertEqual([(1, "w1", BOOM), (2, "w2", None)], list(columns._starts(live)))
        self.assertEqual([(1, "w1", BOOM), (None, None, CANCELLED)], list(columns._starts(gone)))
        self.assertEqual([(None, None, BOOM)], list(columns._starts(lost)))

    def test_long_texts_are_cut(self):
        """A large argument shows its head and its tail."""
        html = self.detail(make_row(args=["x" * 30_000]))

        self.assertIn("characters left out", html)
        self.assertNotIn("x" * 20_000, html)

    def test_nothing_can_be_edited_or_added(self):
        """Even a superuser can neither change a column nor make a row."""
        row = make_row()
        url = reverse("admin:dbtasks_scheduledtask_change", args=[row.pk])

        self.assertNotIn('name="_save"', self.detail(row))
        self.assertEqual(403, self.client.post(url, {"priority": 5}).status_code)
        add = reverse("admin:dbtasks_scheduledtask_add")
        self.assertEqual(403, self.client.get(add).status_code)

    def test_only_finished_rows_can_be_deleted(self):
        """The delete page refuses rows that have not ended."""
        for state in STATES:
            with self.subTest(state):
                row = make_row(state)
                url = reverse("admin:dbtasks_scheduledtask_delete", args=[row.pk])
                done = state in ("successful", "failed", "cancelled")

                response = self.client.post(url, {"post": "yes"})

                self.assertEqual(302 if done else 403, response.status_code)
                self.assertEqual(None if done else STATES[state]["status"], status_of(row))

    def test_a_row_made_ready_meanwhile_is_not_deleted(self):
        """The delete is guarded by the state in the database, not the one on the page."""
        row = make_row("failed")
        page = ScheduledTask.objects.get(pk=row.pk)
        store.retry("default", [row.pk])

        with self.assertRaises(tasks.PermissionDenied):
            tasks.ScheduledTaskAdmin(ScheduledTask, None).delete_model(None, page)

        self.assertEqual(READY, status_of(row))

    def test_buttons_fit_the_state(self):
        """The page offers what its row allows, and comes back to the row."""
        offered = {
            "due": "cancel",
            "scheduled": "run_now",
            "running": "cancel",
            "failed": "retry_failed",
        }
        for state in STATES:
            with self.subTest(state):
                html = self.detail(make_row(state))
                self.assertEqual("<button name=" in html, state not in ("stopping", "successful"))
                self.assertIn(offered.get(state, "</html>"), html)

        row = make_row("failed")
        response = self.act("retry_failed", row, follow=False, from_detail="1")
        self.assertEqual(f"/admin/dbtasks/scheduledtask/{row.pk}/change/", response.url)
        self.assertEqual(READY, status_of(row))


class ActionTests(AdminCase):
    """What the actions do to rows in each state."""

    def outcome(self, action, **fields):
        """Return the states whose rows the action changed, out of one row in each."""
        rows = {state: make_row(state) for state in STATES}
        before = dict(ScheduledTask.objects.in_bulk())
        self.response = self.act(action, *rows.values(), **fields)
        after = ScheduledTask.objects.in_bulk()
        columns = [field.attname for field in ScheduledTask._meta.fields]

        def same(pk):
            return pk in after and all(
                getattr(before[pk], name) == getattr(after[pk], name) for name in columns
            )

        return {state for state, row in rows.items() if not same(row.pk)}

    def test_retry_moves_failed_rows_alone(self):
        """Failed rows are made ready, cancelled ones among them; nothing else changes."""
        self.assertEqual({"failed", "cancelled"}, self.outcome("retry_failed"))
        self.assertContains(self.response, "2 of 8 tasks were made ready; the others had moved on.")

    def test_run_now_moves_scheduled_rows_alone(self):
        """A scheduled row is made due; nothing else changes."""
        self.assertEqual({"scheduled"}, self.outcome("run_now"))
        self.assertContains(self.response, "1 of 8 tasks are due now")

    def test_cancel_ends_what_waits_and_asks_what_runs(self):
        """Waiting rows become FAILED, running ones are asked; nothing else changes."""
        self.assertEqual({"due", "scheduled", "quarantined", "running"}, self.outcome("cancel"))
        self.assertContains(self.response, "3 of 6 tasks were cancelled")
        self.assertContains(self.response, "2 running tasks were asked to stop.")
        self.assertEqual(5, ScheduledTask.objects.failed().count())
        self.assertEqual(2, ScheduledTask.objects.filter(cancel_requested=True).count())

    def test_cancel_of_running_rows_says_no_more_than_that(self):
        """Where nothing waits, nothing is said of it; the history tells who asked."""
        row = make_row("running")
        response = self.act("cancel", row)

        self.assertContains(response, "1 running task was asked to stop.")
        self.assertNotContains(response, "cancelled")
        history = reverse("admin:dbtasks_scheduledtask_history", args=[row.pk])
        self.assertContains(self.client.get(history), "Asked to stop.")

    def test_delete_takes_expired_rows_alone(self):
        """A finished row whose time is over is deleted, whatever else was selected."""
        past, future = timezone.now() - HOUR, timezone.now() + HOUR
        expired = [make_row(s, delete_after=past) for s in ("successful", "failed")]
        kept = [make_row("failed", delete_after=future), make_row("successful")]
        kept += [make_row(s, delete_after=past) for s in ("due", "running")]

        response = self.act("delete_expired", *expired, *kept, confirmed="1")

        self.assertContains(response, "2 of 6 tasks were deleted; the others have not expired.")
        self.assertEqual({row.pk for row in kept}, set(ScheduledTask.objects.in_bulk()))

    def test_delete_asks_first(self):
        """The number of rows that would be deleted stands on a page to confirm."""
        rows = [make_row("failed", delete_after=timezone.now() - HOUR), make_row("failed")]

        response = self.act("delete_expired", *rows)

        self.assertContains(response, "1 task has expired. Delete it?")
        self.assertEqual(2, ScheduledTask.objects.count())

    def test_delete_says_when_nothing_has_expired(self):
        """There is no page to confirm the deletion of nothing."""
        self.assertContains(self.act("delete_expired", make_row("failed")), "None of these")

    def test_all_that_match_in_batches(self):
        """An action on all that match reaches rows beyond the page, and no row that does not."""
        rows = [make_row("failed") for _ in range(7)]
        other = make_row()

        with mock.patch.object(actions, "BATCH", 3):
            response = self.act("retry_failed", rows[0], query="?q=shop", select_across="1")

        self.assertContains(response, "7 tasks were made ready.")
        self.assertEqual(8, ScheduledTask.objects.due().count())
        self.assertFalse(LogEntry.objects.filter(object_id=other.pk).exists())

    def test_delete_of_all_that_match_keeps_the_choice(self):
        """The page to confirm passes on that all matching rows are meant."""
        rows = [make_row("failed", delete_after=timezone.now() - HOUR) for _ in range(3)]

        response = self.act("delete_expired", rows[0], select_across="1")
        self.assertContains(response, "3 tasks have expired. Delete them?")
        self.assertContains(response, 'name="select_across" value="1"')

        self.act("delete_expired", rows[0], select_across="1", confirmed="1")
        self.assertEqual(0, ScheduledTask.objects.count())

    def test_delete_selected_is_not_offered(self):
        """Django's own action, which deletes rows in any state, does nothing here."""
        row = make_row("running")

        self.act("delete_selected", row, post="yes")

        self.assertEqual(RUNNING, status_of(row))

    def test_a_cancelled_row_stays_as_its_backend_says(self):
        """Retention is that of the row's own backend; a backend that is gone keeps for ever."""
        rows = [make_row(backend=alias) for alias in ("default", "gone")]

        self.act("cancel", *rows)

        stays = [ScheduledTask.objects.get(pk=row.pk) for row in rows]
        self.assertEqual(timedelta(days=7), stays[0].delete_after - stays[0].finished_at)
        self.assertIsNone(stays[1].delete_after)

    def test_moved_rows_are_logged(self):
        """The history names who did what, to the rows that moved and no others."""
        failed, due = make_row("failed"), make_row()

        self.act("retry_failed", failed, due)

        entry = LogEntry.objects.get()
        self.assertEqual((str(failed.pk), self.user), (entry.object_id, entry.user))
        history = reverse("admin:dbtasks_scheduledtask_history", args=[failed.pk])
        self.assertContains(self.client.get(history), "Made ready again.")

    def test_runners_of_this_process_are_woken(self):
        """A runner learns of rows made ready when they are committed."""
        row = make_row("failed", backend="mails")

        with (
            mock.patch("dbtasks.wakeup.announcing.became_due") as became_due,
            self.captureOnCommitCallbacks(execute=True),
        ):
            self.act("retry_failed", row)
            became_due.assert_not_called()

        became_due.assert_called_once_with(
            "default",
            "mails",
            [Place(row.queue_name, row.priority, row.pk)],
            is_notified=False,
        )

    def test_task_code_is_not_run(self):
        """No action calls the function in the web process."""
        path = f"{__name__}.login"
        with mock.patch(f"{__name__}.login", SimpleNamespace()):
            for state, action in (("failed", "retry_failed"), ("scheduled", "run_now")):
                row = make_row(state, task_path=path)
                self.act(action, row)
                self.assertEqual(READY, status_of(row))


class PermissionTests(AdminCase):
    """Who may do what."""

    moves = {
        "retry_failed": ("change", "failed"),
        "run_now": ("change", "scheduled"),
        "cancel": ("change", "due"),
        "delete_expired": ("delete", "successful"),
    }

    def test_each_action_needs_its_permission(self):
        """An action is offered, and does anything, with its own permission alone."""
        for holder in (None, "change", "delete"):
            User.objects.filter(username="staff").delete()
            self.sign_in("view", *([holder] if holder else []))
            for action, (needed, state) in self.moves.items():
                with self.subTest(holder=holder, action=action):
                    row = make_row(state, delete_after=timezone.now() - HOUR)
                    offered = f'<option value="{action}">' in self.list().content.decode()
                    self.act(action, row, confirmed="1")

                    now = ScheduledTask.objects.filter(pk=row.pk).values().first()
                    moved = now is None or now["status"] != row.status or now["hold"] != row.hold
                    self.assertEqual((holder == needed,) * 2, (offered, moved))

    def test_without_permission_there_is_no_page(self):
        """Staff without any permission on tasks sees neither list nor row."""
        self.sign_in()

        self.assertEqual(403, self.list().status_code)

    def test_viewers_get_no_buttons(self):
        """The page of a row offers a viewer nothing to press."""
        self.sign_in("view")

        html = self.detail(make_row("failed"))

        self.assertNotIn("<button name=", html)
        self.assertNotIn("deletelink", html)


class OtherDatabaseTests(AdminCase):
    """A queue that does not live in the default database."""

    databases = {"default", "other"}

    @override_settings(DATABASE_ROUTERS=[f"{__name__}.QueueElsewhere"])
    def test_a_router_is_followed(self):
        """Rows are shown and moved in the database that a router names."""
        row, stray = make_row("failed", "other"), make_row("failed", "default")

        self.assertContains(self.list(), str(row.pk))
        self.assertNotContains(self.list(), str(stray.pk))
        self.act("retry_failed", row)
        self.assertEqual((READY, FAILED), (status_of(row), status_of(stray)))

    def test_the_option_is_followed(self):
        """Rows are shown, moved and deleted in the database that OPTIONS names."""
        ours = {
            "BACKEND": "dbtasks.backend.DatabaseBackend",
            "OPTIONS": {"database": "other"},
        }
        first = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
        with override_settings(TASKS={"default": first, "ours": ours}):
            row, gone = (make_row("failed", "other", backend="ours") for _ in range(2))
            self.assertIn("ValueError: boom", self.detail(row))
            self.act("retry_failed", row)
            self.client.post(
                reverse("admin:dbtasks_scheduledtask_delete", args=[gone.pk]), {"post": "yes"}
            )

        self.assertEqual((READY, None), (status_of(row), status_of(gone)))

    @override_settings(TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}})
    def test_without_our_backend_the_default_database_is_shown(self):
        """Rows left behind show when no backend in TASKS is ours any more."""
        make_row("failed")

        self.assertContains(self.list(), "ValueError: boom")


class LockTests(TransactionTestCase):
    """Two who act on the same row."""

    @skipUnlessDBFeature("has_select_for_update_skip_locked")
    def test_a_row_in_other_hands_is_skipped(self):
        """An action neither waits for a row that somebody else is moving, nor moves it."""
        self.client.force_login(User.objects.create_superuser("boss"))
        row, locked, done = make_row("failed"), Event(), Event()

        def hold():
            with transaction.atomic():
                ScheduledTask.objects.select_for_update().get(pk=row.pk)
                locked.set()
                done.wait(10)
            connection.close()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(hold)
            locked.wait(10)
            fields = {"action": "retry_failed", "_selected_action": [str(row.pk)]}
            response = self.client.post(reverse(LIST), fields, follow=True)
            done.set()

        self.assertContains(response, "0 of 1 tasks were made ready; the others had moved on.")
        self.assertEqual(FAILED, status_of(row))


class HumanizeTests(SimpleTestCase):
    """How times are told."""

    def test_lengths_have_two_units(self):
        """A length is told in the units a person would choose."""
        told = {0: "0 ms", 0.25: "250 ms", 3.44: "3.4 s", 61: "1 min 1 s", 7500: "2 h 5 min"}
        told |= {90_000: "1 d 1 h", -5: "0 ms"}

        for seconds, text in told.items():
            self.assertEqual(text, render.humanize(timedelta(seconds=seconds)))


class WorkerTests(AdminCase):
    """The list of runners."""

    def test_runners_can_be_looked_at_and_nothing_else(self):
        """A runner shows with its state; nobody can add, change or delete it."""
        workers.register("default", "host-1-abc", "default", "", 1, 1)
        url = reverse("admin:dbtasks_worker_changelist")
        detail = reverse("admin:dbtasks_worker_change", args=["host-1-abc"])

        self.assertContains(self.client.get(url), "host-1-abc")
        self.assertContains(self.client.get(detail), "Live")
        self.assertEqual(403, self.client.get(reverse("admin:dbtasks_worker_add")).status_code)
        self.assertEqual(403, self.client.post(detail, {"beat": 5}).status_code)
        gone = reverse("admin:dbtasks_worker_delete", args=["host-1-abc"])
        self.assertEqual(403, self.client.post(gone, {"post": "yes"}).status_code)
