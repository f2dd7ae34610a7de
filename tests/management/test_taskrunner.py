"""``manage.py taskrunner``, in processes of its own and called in this one."""

import json
import signal
import tempfile
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import CommandError, call_command
from django.db import connection
from django.test import SimpleTestCase, TransactionTestCase, override_settings

from dbtasks.console import preflight, terminal
from dbtasks.models import ScheduledTask

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase
from ..support.rows import statuses
from ..support.waiting import until
from ..tasks import add, fail, wait_for_file, write_line


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def taskrunner(*arguments: Any, err: StringIO | None = None) -> tuple[int, str, str]:
    """Call the command in this process; return its exit code and what it said."""
    out, err = StringIO(), err or StringIO()
    code = 0
    try:
        call_command("taskrunner", *map(str, arguments), stdout=out, stderr=err)
    except SystemExit as left:
        code = int(str(left.code))
    return code, out.getvalue(), err.getvalue()


class DrainTests(ProcessTestCase):
    """A runner that ends by itself."""

    def test_runs_what_is_due_and_ends(self):
        """--drain runs every due task, sums up, and exits with 0."""
        add.enqueue_many([((n, 1), {}) for n in range(50)])

        child = self.start("taskrunner", "--drain", "-w", 2)

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 50}, statuses())
        self.assertIn("Ran 50 tasks in ", child.stdout)
        self.assertIn("50 successful, 0 failed.", child.stdout)

    def test_a_failed_task_is_exit_code_3(self):
        """--drain exits with 3 if a task of this run failed, and says which error that was."""
        fail.enqueue("the first line\nanother line")

        child = self.start("taskrunner", "--drain")

        self.assertEqual(3, child.end(), child.stderr)
        self.assertIn("1 failed.", child.stdout)
        self.assertIn("ValueError: the first line\n", child.stderr)

    def test_several_runners_do_each_row_once(self):
        """Three runners on one database run each of 600 rows exactly once."""
        ledger = self.folder / "ledger"
        write_line.enqueue_many([((str(ledger), str(n)), {}) for n in range(600)])

        children = [self.start("taskrunner", "--drain", "-w", 2) for _ in range(3)]

        self.assertEqual([0, 0, 0], [child.end() for child in children])
        self.assertEqual(sorted(map(str, range(600))), sorted(ledger.read_text().split()))
        self.assertEqual({"SUCCESSFUL": 600}, statuses())


class SignalTests(ProcessTestCase):
    """What SIGTERM and SIGINT do."""

    def start_idle(self) -> Child:
        """Return a runner that polls once a minute."""
        child = self.start("taskrunner", "--delay", 60)
        child.wait_for("Stop with Ctrl-C")
        return child

    def start_busy(self, *arguments: Any) -> Child:
        """Return a runner with one task running, and three more rows due."""
        wait_for_file.enqueue(str(self.folder))
        child = self.start("taskrunner", "-w", 1, *arguments)
        until((self.folder / "started").exists, "The task")
        child.wait_for("Stop with Ctrl-C")
        add.enqueue_many([((n, 1), {}) for n in range(3)])
        return child

    def test_an_idle_runner_ends_at_once(self):
        """SIGTERM and SIGINT end an idle runner without waiting for its next poll."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        # Under nohup, which children inherit, a runner does not end with its terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            with self.subTest(number.name):
                child = self.start_idle()

                child.signal(number)

                self.assertEqual(0, child.end(), child.stderr)
                self.assertIn(f"{number.name}: stopping", child.stderr)

    def test_a_busy_runner_finishes_what_runs(self):
        """After SIGTERM the running task ends well, and no other row is left RUNNING."""
        child = self.start_busy()

        child.signal(signal.SIGTERM)
        child.wait_for("SIGTERM: waiting up to 30.0 s for 1 running task")
        (self.folder / "go").touch()

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 1, "READY": 3}, statuses())

    def test_a_second_signal_leaves_now(self):
        """The second signal requeues the running task and exits with 128 + its number."""
        child = self.start_busy()

        child.signal(signal.SIGTERM)
        child.wait_for("SIGTERM: waiting")
        child.signal(signal.SIGINT)

        self.assertEqual(128 + signal.SIGINT, child.end(), child.stderr)
        self.assertIn("SIGINT: leaving now", child.stderr)
        self.assertEqual({"READY": 4}, statuses())

    def test_where_each_thread_is(self):
        """SIGQUIT shows the line of the running task, and the runner goes on."""
        child = self.start_busy()

        child.signal(signal.SIGQUIT)
        child.wait_for("in wait_for_file")
        (self.folder / "go").touch()
        until(lambda: statuses() == {"SUCCESSFUL": 4}, "The end of all tasks")
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.stderr)

    def test_grace_runs_out(self):
        """A task that takes longer than the grace is requeued; the exit code is 5."""
        child = self.start_busy("--grace", "0.2")

        child.signal(signal.SIGTERM)

        self.assertEqual(5, child.end(), child.stderr)
        self.assertIn("1 running task requeued", child.stdout)
        self.assertEqual({"READY": 4}, statuses())
        row = ScheduledTask.objects.get(task_path=wait_for_file.module_path)
        self.assertEqual("dbtasks.exceptions.TaskReleased", row.errors[0][0])


class LimitTests(TransactionTestCase):
    """Which rows are taken, and how many."""

    def test_only_the_named_queues(self):
        """--queue leaves the rows of other queues alone."""
        add.enqueue(1, 2)
        add.using(queue_name="mail").enqueue(1, 2)

        code, _, err = taskrunner("--drain", "--queue", "mail")

        self.assertEqual(0, code)
        self.assertIn("queues: mail", err)
        done = ScheduledTask.objects.successful().values_list("queue_name", flat=True)
        self.assertEqual(["mail"], list(done))

    def test_queues_are_joined_by_commas_or_excluded(self):
        """As in other runners: -q a,b and -q '*' and --exclude-queue."""
        for flags, left, said in (
            (("-q", "default,mail"), [], "queues: default, mail"),
            (("-q", "*"), [], "queues: default, mail"),
            (("--exclude-queue", "mail"), ["mail"], "queues: all but mail"),
            (("-q", "default,mail", "-x", "mail"), ["mail"], "queues: default"),
        ):
            with self.subTest(flags):
                ScheduledTask.objects.all().delete()
                add.enqueue(1, 2)
                add.using(queue_name="mail").enqueue(1, 2)

                code, _, err = taskrunner("--drain", *flags)

                self.assertEqual(0, code)
                self.assertIn(said, err)
                due = ScheduledTask.objects.due().values_list("queue_name", flat=True)
                self.assertEqual(left, list(due))

    def test_queues_that_leave_nothing_are_refused(self):
        """A misspelt name as well, before anything is claimed."""
        for flags, said in (
            (("-x", "nope"), "There is no queue 'nope' in TASKS['default']['QUEUES']"),
            (("-x", "default,mail"), "is left to serve: all are excluded"),
            (("-q", "mail", "-x", "mail"), "No queue is left to serve"),
            (("-q", ","), "names no queue"),
        ):
            with self.subTest(flags), self.assertRaisesMessage(CommandError, said):
                taskrunner("--drain", *flags)

    def test_max_tasks_ends_the_runner(self):
        """--max-tasks ends the runner after so many tasks; the other rows stay due."""
        add.enqueue_many([((n, 1), {}) for n in range(5)])

        self.assertEqual(0, taskrunner("--max-tasks", 2)[0])

        self.assertEqual({"SUCCESSFUL": 2, "READY": 3}, statuses())

    def test_the_worker_id_starts_with_the_name(self):
        """-i is the start of the worker id, which the banner and the rows show."""
        result = add.enqueue(1, 2)

        _, _, err = taskrunner("--drain", "-i", "mill")

        result.refresh()
        self.assertTrue(result.worker_ids[0].startswith("mill-"))
        self.assertIn(f"Worker {result.worker_ids[0]}.", err)


class OutputTests(TransactionTestCase):
    """What people and programs read."""

    def test_a_line_for_each_task(self):
        """Each finished task has a line with id, path, queue, attempt, status and times."""
        result = add.enqueue(1, 2)

        _, out, err = taskrunner("--drain")

        self.assertRegex(
            err,
            rf"(?m)^\d\d:\d\d:\d\d ok   {result.id[-12:]} tests\.tasks\.add  queue=default "
            r"attempt=1 SUCCESSFUL waited \S+ m?s, took \S+ ms$",
        )
        self.assertIn(f"in {connection.display_name} ", err)
        self.assertRegex(out, r"^Ran 1 task in .* 1 successful, 0 failed\.\n$")

    def test_verbosity_0_says_nothing(self):
        """-v 0 prints nothing, whatever happens."""
        fail.enqueue()

        self.assertEqual((3, "", ""), taskrunner("--drain", "-v", 0))

    def test_verbosity_2_shows_tracebacks(self):
        """Also with Django's own LOGGING and without DEBUG; they begin in the task's code."""
        fail.enqueue()
        _, _, usual = taskrunner("--drain")
        fail.enqueue()
        _, _, err = taskrunner("--drain", "-v", 2)

        self.assertNotIn("Traceback", usual)
        self.assertRegex(
            err, r"  Traceback [^\n]*\n    File [^\n]*tests/tasks\.py[^\n]*, in fail\n"
        )
        self.assertNotIn("dbtasks/execution", err)

    def test_claims_and_peeks(self):
        """-v 2 shows each claim and each peek at the queue too."""
        add.enqueue(1, 2)

        _, _, err = taskrunner("--drain", "-v", 2)

        self.assertIn("DEBUG Claimed 1 of at most", err)
        self.assertIn("DEBUG Peeked: due", err)

    def test_many_tasks_are_summed_up(self):
        """More tasks than people can read become one line a second; failures stay visible."""
        add.enqueue_many([((n, 1), {}) for n in range(400)])
        fail.enqueue_many([(("no",), {})] * 200)

        code, out, err = taskrunner("--drain", "-w", 2)

        self.assertEqual(3, code)
        self.assertLess(len(err.splitlines()), 100)
        self.assertRegex(err, r"\d+ tasks in the last second, \d+ failed\n")
        self.assertGreaterEqual(err.count("FAIL"), 1)
        self.assertIn("400 successful, 200 failed.", out)

    def test_json_lines(self):
        """--json prints one JSON object a line, with the whole id and times in seconds."""
        results = [add.enqueue(1, 2), fail.enqueue("a\nb")]

        code, out, _ = taskrunner("--drain", "--json", "-w", 1)

        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(3, code)
        self.assertEqual(
            ["runner.started", "task.finished", "task.failed", "runner.stopped"],
            [line["event"] for line in lines],
        )
        self.assertEqual([r.id for r in results], [line["task_id"] for line in lines[1:3]])
        self.assertEqual(("ValueError", "a"), (lines[2]["exception"], lines[2]["message"]))
        self.assertGreaterEqual(lines[1]["wait_s"], 0)
        self.assertEqual((2, 1), (lines[3]["done"], lines[3]["failed"]))

    def test_nothing_reaches_the_terminal_that_could_steer_it(self):
        """Escape sequences and newlines in messages are shown, not sent."""
        fail.enqueue("\x1b[2J\x9b31m\u202egone\r")

        _, _, err = taskrunner("--drain")

        self.assertIn(r"ValueError: \x1b[2J\x9b31m\u202egone", err)
        self.assertNotRegex(err, "[\x1b\x9b\u202e\r]")

    def test_a_bar_on_a_terminal(self):
        """--drain on a terminal draws one line over and over, and takes it away at the end."""
        add.enqueue_many([((n, 1), {}) for n in range(30)])

        _, out, err = taskrunner("--drain", err=Terminal())

        self.assertRegex(err, r"[█░]{10,} done \d+ · failed 0 · running \d+ · left \d+")
        self.assertTrue(err.endswith("\r\x1b[K"))
        self.assertNotIn("tests.tasks.add", err)
        self.assertIn("Ran 30 tasks", out)


class RefusalTests(ProcessTestCase):
    """What is wrong is said in one sentence before anything starts."""

    def refuse(self, *arguments: Any) -> str:
        """Return the sentence with which the command refuses."""
        with self.assertRaises(CommandError) as caught:
            taskrunner(*arguments)
        return str(caught.exception)

    def test_wrong_flags_are_refused(self):
        """A wrong value is named, with what is allowed."""
        for flag, wrong, allowed in (
            ("-w", "0", "a whole number from 1 to 1,000"),
            ("--threads", "many", "a whole number from 1 to 1,000"),
            ("--processes", "0", "a whole number from 1 to 256"),
            ("--processes", "257", "a whole number from 1 to 256"),
            ("--delay", "0", "Use seconds from 0.01 to 3,600"),
            ("--interval", "nan", "Use seconds from 0.01 to 3,600"),
            ("--grace", "-1s", "Use seconds from 0 to 86,400"),
            ("--grace", "inf", "Use seconds from 0 to 86,400"),
            ("--max-tasks", "1.5", "a whole number from 1"),
            ("-i", "a\nb", "1 to 100 printable characters"),
            ("-i", "x" * 101, "1 to 100 printable characters"),
            ("--queue", "nowhere", "Use 'default', 'mail'"),
        ):
            with self.subTest(flag=flag, wrong=wrong):
                sentence = self.refuse(f"{flag}={wrong}" if flag[1] == "-" else f"{flag}{wrong}")

                self.assertIn(allowed, sentence)

    def test_a_wrong_flag_is_exit_code_2(self):
        """The process ends with argparse's own code, and shows the usage."""
        child = self.start("taskrunner", "--workers", "none")

        self.assertEqual(2, child.end())
        self.assertIn("usage: manage.py taskrunner", child.stderr)

    def test_unusable_backends_are_refused(self):
        """A backend that no runner can serve is refused, saying why."""
        others = {
            **backend(),
            "now": {**backend()["default"], "OPTIONS": {"immediate": True}},
            "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
            "typo": {**backend()["default"], "OPTIONS": {"signal": True}},
        }
        with override_settings(TASKS=others):
            for alias, why in (
                ("nope", "There is no backend 'nope'"),
                ("now", "is immediate"),
                ("dummy", "uses DummyBackend"),
                ("typo", "unknown option 'signal'"),
            ):
                with self.subTest(alias):
                    self.assertIn(why, self.refuse("--backend", alias))

    def test_any_queue_where_queues_is_empty(self):
        """QUEUES = [] means any name, within the length of its column."""
        with override_settings(TASKS=backend(QUEUES=[])):
            self.assertEqual(0, taskrunner("--drain", "--queue", "anything")[0])
            self.assertIn("1 to 100 characters", self.refuse("--queue", "x" * 101))

    def test_a_database_without_the_table(self):
        """Without the table the command says to migrate, and exits with 1."""
        child = self.start("taskrunner", TEST_DATABASE=f"sqlite:///{self.folder}/empty.sqlite3")

        self.assertEqual(1, child.end())
        self.assertIn("Run 'manage.py migrate' first.", child.stderr)
        self.assertNotIn("Traceback", child.stderr)

    def test_a_database_that_is_away(self):
        """A database that cannot be reached is one sentence, and exit code 1."""
        child = self.start("taskrunner", TEST_DATABASE=f"sqlite:///{self.folder}/no/where.sqlite3")

        self.assertEqual(1, child.end())
        self.assertRegex(child.stderr, r"^CommandError: The database 'default' cannot be reached: ")
        self.assertEqual(1, len(child.stderr.splitlines()))


class SharedTests(SimpleTestCase):
    """The parts that commands share."""

    def test_seconds_for_people(self):
        """Times are short to read, from fractions of a millisecond to days."""
        for value, text in (
            (None, "–"),
            (-1, "0.0 ms"),
            (0.0004, "0.4 ms"),
            (0.25, "250 ms"),
            (3.21, "3.2 s"),
            (3900, "1h5m"),
        ):
            self.assertEqual(text, terminal.humanize_seconds(value))

    def test_text_without_control_characters(self):
        """Text is bounded and loses nothing but its power over the terminal."""
        self.assertEqual(r"a\x1b[0m\nb\ud800 ü", terminal.printable("a\x1b[0m\nb\ud800 ü"))
        self.assertEqual(300, len(terminal.printable("x" * 1000)))

    def test_a_screen_that_cannot_show_everything(self):
        """Characters that the terminal's encoding lacks are written as escapes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "out")
            with path.open("w", encoding="ascii") as stream:
                terminal.Terminal(stream).line("5 µs · ok")

            self.assertEqual("5 \\xb5s \\xb7 ok\n", path.read_text())

    def test_a_screen_that_is_gone(self):
        """A closed stream, or a full one, is no reason to fail."""
        stream = StringIO()
        stream.close()

        terminal.Terminal(stream).line("nobody reads this")

    def test_a_pool_that_is_too_small(self):
        """A connection pool is warned about if it has no room for the threads and two more."""
        for pool, threads, warns in (
            (None, 99, False),
            (True, 3, True),
            (True, 2, False),
            ({"max_size": 7}, 5, False),
            ({"min_size": 2, "max_size": 7}, 6, True),
            ({"min_size": 5}, 3, False),
        ):
            with self.subTest(pool=pool, threads=threads):
                connection.settings_dict["OPTIONS"]["pool"] = pool
                self.addCleanup(connection.settings_dict["OPTIONS"].pop, "pool", None)

                self.assertEqual(warns, preflight.small_pool("default", threads) is not None)
