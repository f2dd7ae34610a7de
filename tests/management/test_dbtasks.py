"""``manage.py dbtasks`` and its subcommands."""

import json
from datetime import datetime, timedelta
from io import StringIO

from django.core.management import CommandError, call_command, load_command_class
from django.test import TestCase, TransactionTestCase, override_settings

from dbtasks import store
from dbtasks.models import ScheduledTask

from ..support.backends import backend
from ..support.rows import DB, make_claim, make_task, outcome, row


def dbtasks(*arguments: object) -> tuple[int, str, str]:
    """Call the command; return its exit code and what it said."""
    out, err = StringIO(), StringIO()
    code = 0
    try:
        call_command("dbtasks", *map(str, arguments), stdout=out, stderr=err, no_color=True)
    except SystemExit as left:
        code = int(str(left.code))
    return code, out.getvalue(), err.getvalue()


class CancelTests(TestCase):
    """dbtasks cancel"""

    def test_what_waits_ends_and_what_runs_is_asked(self):
        """A line for each id, and exit code 0."""
        waiting, running = make_task(), make_claim().id
        code, out, err = dbtasks("cancel", waiting, running)

        self.assertEqual((0, ""), (code, err))
        self.assertIn(f"tests.tasks.add {waiting} was cancelled.\n", out)
        self.assertIn("is running; it was asked to stop.\n", out)
        self.assertEqual("FAILED", row(waiting).status)
        self.assertTrue(row(running).cancel_requested)

    def test_what_cannot_be_cancelled_is_told(self):
        """Exit code 1, and the others are cancelled all the same."""
        done, waiting = make_claim(), make_task()
        store.settle(DB, [outcome(done)])
        code, out, err = dbtasks("cancel", done.id, "nonsense", waiting)

        self.assertEqual(1, code)
        self.assertIn("has finished as SUCCESSFUL; there is nothing to cancel.\n", err)
        self.assertIn("There is no task 'nonsense' in the backend 'default'.\n", err)
        self.assertIn("was cancelled.", out)
        self.assertEqual("FAILED", row(waiting).status)

    def test_cancel_can_be_quiet(self):
        """-v 0 tells what went wrong only."""
        self.assertEqual((0, "", ""), dbtasks("-v", 0, "cancel", make_task()))

    def test_a_backend_s_own_rows_only(self):
        """An id says nothing of whose row it is; an unknown alias is refused."""
        id = make_task(backend="other")

        self.assertEqual(1, dbtasks("cancel", id)[0])
        self.assertEqual("READY", ScheduledTask.objects.get(pk=id).status)
        with self.assertRaisesMessage(CommandError, "There is no backend 'nobody' in TASKS."):
            dbtasks("cancel", id, "--backend", "nobody")

    @override_settings(TASKS={**backend(), "two": backend()["default"]})
    def test_cancel_on_another_backend(self):
        """--backend says whose."""
        id = make_task(backend="two")

        self.assertEqual(0, dbtasks("cancel", id, "--backend", "two")[0])
        self.assertEqual("FAILED", row(id).status)

    def test_flags_of_django_work_after_the_subcommand(self):
        """As they do after a command; those before it count as well."""
        for before, after in ((["-v", 0], []), ([], ["-v", 0, "--no-color", "--traceback"])):
            with self.subTest(after):
                self.assertEqual((0, "", ""), dbtasks(*before, "cancel", make_task(), *after))
        parser = load_command_class("dbtasks", "dbtasks").create_parser("manage.py", "dbtasks")
        flags = ["--settings", "x", "--pythonpath", "y", "--skip-checks", "-v", "2"]
        for name in ("periodic", "cancel 1"):
            found = parser.parse_args([*name.split(), *flags])
            said = (found.settings, found.pythonpath, found.skip_checks, found.verbosity)
            self.assertEqual(("x", "y", True, 2), said)

    def test_a_verb_is_needed(self):
        """Without one the command says which there are."""
        with self.assertRaisesMessage(CommandError, "SUBCOMMAND"):
            dbtasks()
        with self.assertRaisesMessage(CommandError, "cancel"):
            dbtasks("cancle", 1)


class SweepTests(TransactionTestCase):
    """dbtasks sweep"""

    def test_a_line_says_what_was_done(self):
        """Only what there is to say."""
        make_task()
        code, out, err = dbtasks("sweep")

        self.assertEqual((0, ""), (code, err))
        self.assertRegex(out, r"^Ran 1 task in [\d.]+ m?s: 1 succeeded\.\n$")
        self.assertRegex(dbtasks("sweep")[1], r"^Ran 0 tasks in [\d.]+ m?s\.\n$")
        self.assertEqual((0, "", ""), dbtasks("sweep", "-v", 0))

    def test_a_failed_task_is_an_exit_code(self):
        """As with taskrunner --drain."""
        make_task(task_path="tests.tasks.fail")
        make_task()
        code, out, _ = dbtasks("sweep", "--max-tasks", 1)

        self.assertEqual(3, code)
        self.assertRegex(out, r": 1 failed\. More is due\.\n$")

    def test_machines_read_an_object(self):
        """Of counts, without arguments and results."""
        make_task()
        make_task(run_after=store.now(DB) + timedelta(hours=1))
        code, out, _ = dbtasks("sweep", "--json", "--queue", "default", "--max-seconds", "2m")
        found = json.loads(out)

        self.assertEqual(
            (0, 1, 1, False), (code, found["ran"], found["succeeded"], found["due_left"])
        )
        self.assertGreater(datetime.fromisoformat(found["next_due"]), store.now(DB))
        self.assertNotIn("results", found)

    def test_what_is_not_valid_is_said(self):
        """In one sentence, before anything runs."""
        for flags, sentence in (
            (["--max-tasks", 0], "'0' is not a valid number of tasks"),
            (["--max-seconds", "soon"], "'soon' is not a valid time limit"),
            (["--queue", "none"], "There is no queue 'none'"),
            (["--backend", "none"], "There is no backend 'none'"),
        ):
            with self.subTest(flags), self.assertRaisesMessage(CommandError, sentence):
                dbtasks("sweep", *flags)
