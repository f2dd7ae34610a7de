"""``manage.py taskrunner --processes N``: runners, and the process that supervises them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import SimpleTestCase

from dbtasks.exceptions import RunnerError
from dbtasks.liveness import identity
from dbtasks.models import ScheduledTask, Worker
from dbtasks.processes import signals
from dbtasks.processes.child import Backoff, command_line, replicas
from dbtasks.processes.link import ENVIRONMENT, SupervisorLink
from dbtasks.processes.supervisor import Supervisor, worst_exit_code

from ..support.processes import MANAGE, ROOT, Child, ProcessTestCase, database_url
from ..support.rows import statuses
from ..support.waiting import until
from ..tasks import add, fail, wait_for_file

# What a process of the tests does first: it says that it is ready, and counts its lives in a file.
PROLOGUE = """
import json, os, pathlib, socket, sys
number, fd = map(int, os.environ["DBTASKS_SUPERVISED"].split())
link = socket.socket(fileno=fd)
tell = lambda *words: link.sendall(json.dumps(words).encode() + b"\\n")
lives = pathlib.Path(sys.argv[1], str(number))
lives.open("a").write(".")
life = len(lives.read_text())
"""


class RuleTests(SimpleTestCase):
    """The rules, without a process."""

    def test_the_pauses_grow_while_deaths_are_early(self):
        """None, then 1 s, doubling up to 30 s; a minute of health makes it an accident again."""
        backoff = Backoff()

        self.assertEqual([0, 1, 2, 4, 8, 16, 30, 30], [backoff.after(1) for _ in range(8)])
        self.assertEqual([0, 1], [backoff.after(60), backoff.after(59)])

    def test_the_exit_code_is_the_worst(self):
        """128 + n, then 5, then 3, then 0; a process that was killed counts as 5."""
        for codes, code in (
            ([], 0),
            ([0, 0], 0),
            ([0, 3], 3),
            ([3, 5, 0], 5),
            ([5, 130, 0], 130),
            ([3, -9], 5),
            ([0, 1], 5),
        ):
            self.assertEqual(code, worst_exit_code(codes), codes)

    def test_the_command_line_is_that_of_the_process(self):
        """With the options of the interpreter, and whatever it ran."""
        for arguments in (
            ["manage.py", "taskrunner", "--settings=a.b"],
            ["-X", "dev", "-m", "django", "taskrunner"],
            ["/venv/bin/django-admin", "taskrunner", "-v", "0"],
        ):
            with mock.patch.object(sys, "orig_argv", ["python", *arguments]):
                self.assertEqual([sys.executable, *arguments], command_line())

    def test_an_echo_is_the_same_signal_at_once(self):
        """Counted from when it was dealt with, which may take long."""
        clock = self.enterContext(mock.patch.object(signals.time, "monotonic", return_value=50.0))
        debounce = signals.Debounce()
        self.assertFalse(debounce.is_echo(signal.SIGTERM))
        debounce.dealt_with(signal.SIGTERM)
        for later, number, is_echo in (
            (0.0, signal.SIGTERM, True),
            (0.0, signal.SIGINT, False),
            (0.19, signal.SIGTERM, True),
            (0.21, signal.SIGTERM, False),
        ):
            clock.return_value = 50.0 + later
            self.assertEqual(is_echo, debounce.is_echo(number))

    def test_a_process_without_a_supervisor(self):
        """It has no link; one whose supervisor cannot be reached says so, and runs nothing."""
        self.assertIsNone(SupervisorLink.inherited())
        for text in ("1 2 3", "1 x", "1 999"):
            with mock.patch.dict(os.environ, {ENVIRONMENT: text}):
                with self.assertRaisesMessage(RunnerError, "does not name a supervisor"):
                    SupervisorLink.inherited()
                self.assertNotIn(ENVIRONMENT, os.environ)


class LivesTests(SimpleTestCase):
    """What becomes of processes that end, with processes that only say what they do."""

    def setUp(self) -> None:
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.said: list[dict[str, Any]] = []

    def supervise(self, script: str, count: int = 1, ends: bool = True) -> int:
        """Return the exit code of a supervisor whose processes run the script."""
        return Supervisor(
            replicas(count, [sys.executable, "-S", "-E", "-c", PROLOGUE + script, self.folder]),
            grace=1.0,
            ends=ends,
            say=lambda text, **fields: self.said.append({"text": text, **fields}),
        ).run("The banner")

    def lives(self, number: int = 1) -> int:
        path = Path(self.folder, str(number))
        return len(path.read_text()) if path.exists() else 0

    def pauses(self) -> list[float]:
        return [said["pause_s"] for said in self.said if said["event"] == "process.ended"]

    def test_the_codes_of_all_make_one(self):
        """Who has said goodbye is not replaced, and the worst code counts."""
        code = self.supervise('tell("ready", "w"); tell("done"); sys.exit(3 * (number - 1))', 2)

        self.assertEqual((3, 1, 1), (code, self.lives(1), self.lives(2)))
        self.assertEqual(["The banner"], [said["text"] for said in self.said])

    def test_who_dies_is_replaced_after_a_growing_pause(self):
        """At once, then after a second; an exit code alone is no goodbye."""
        code = self.supervise(
            'tell("ready", str(life))\n'
            "if life == 1: os._exit(0)\n"
            "if life == 2: os.kill(os.getpid(), 9)\n"
            'tell("done")'
        )

        self.assertEqual((0, 3, [0, 1]), (code, self.lives(), self.pauses()))
        self.assertIn("died with exit code 0; another starts now.", self.said[1]["text"])
        self.assertIn("was killed by SIGKILL; another starts in 1.0 s.", self.said[2]["text"])

    def test_who_asks_to_be_replaced_is(self):
        """As often as it asks, at once, even where runners end by themselves."""
        code = self.supervise('tell("ready", str(life)); tell("done"); sys.exit(6 * (life < 4))')

        self.assertEqual((0, 4, [0, 0, 0]), (code, self.lives(), self.pauses()))

    def test_who_stops_unasked_is_replaced(self):
        """A runner that should stay does not go because somebody stopped its process."""
        code = self.supervise(
            'tell("ready", str(life)); tell("done")\n'
            "if life == 2: os.kill(os.getppid(), 15); link.recv(100)",
            ends=False,
        )

        self.assertEqual((0, 2, [0]), (code, self.lives(), self.pauses()))

    def test_who_ends_right_after_a_stop_is_not_replaced(self):
        """A signal to the whole group, as systemd sends it, may end a process first."""
        for _ in range(20):
            code = self.supervise(
                'tell("ready", str(life)); tell("done")\nos.kill(os.getppid(), 15); os._exit(3)',
                ends=False,
            )
            self.assertEqual((3, []), (code, self.pauses()))

    def test_who_could_never_start_ends_all(self):
        """The others stop, and its own sentence is the error."""
        with self.assertRaisesMessage(RunnerError, "Nothing works."):
            self.supervise(
                'if number == 1: tell("failed", "Nothing works.", False); sys.exit(1)\n'
                'tell("ready", "w"); link.recv(100); tell("done")',
                2,
                ends=False,
            )

        self.assertEqual(1, self.lives(1))

    def test_who_cannot_start_again_is_tried_again(self):
        """The database may be away just now."""
        code = self.supervise(
            'if life == 2: tell("failed", "It is away.", True); sys.exit(1)\n'
            'tell("ready", str(life)); life == 1 and os._exit(1); tell("done")'
        )

        self.assertEqual((0, 3, [0, 1]), (code, self.lives(), self.pauses()))
        self.assertIn("could not start: It is away; another", self.said[2]["text"])

    def test_the_others_and_the_next_are_told_who_is_gone(self):
        """They requeue what it held, without waiting for its beat."""
        code = self.supervise(
            'tell("ready", f"{number}/{life}")\n'
            "if (number, life) == (1, 1): os._exit(1)\n"
            'print(link.recv(100), file=open(os.path.join(sys.argv[1], f"told{number}"), "w"))\n'
            'tell("done")',
            2,
        )

        told = [Path(self.folder, f"told{number}").read_text() for number in (1, 2)]
        self.assertEqual(0, code)
        self.assertIn('["gone", "1/1"]', told[0])
        self.assertIn('["gone", "1/1"]', told[1])

    def test_who_does_not_stop_is_killed(self):
        """After the grace and a margin; what it held is requeued, which is exit code 5."""
        with mock.patch("dbtasks.processes.supervisor.MARGIN", -0.5):
            code = self.supervise(
                'tell("ready", "w"); os.kill(os.getppid(), 15)\nwhile True: link.recv(100)'
            )

        self.assertEqual(5, code)
        self.assertIn("has not stopped in time, and is killed.", self.said[-1]["text"])


class SupervisorTestCase(ProcessTestCase):
    """Starts supervisors of real runners."""

    def busy(self, *arguments: Any, **environment: str) -> Child:
        """Return a supervisor whose two processes each run a task that waits for its file."""
        for name in ("a", "b"):
            (self.folder / name).mkdir()
            wait_for_file.enqueue(str(self.folder / name))
        child = self.start("taskrunner", "--processes", 2, *arguments, **environment)
        until(lambda: self.has_started("a") and self.has_started("b"), "The tasks")
        return child

    def has_started(self, name: str) -> bool:
        return (self.folder / name / "started").exists()

    def go(self) -> None:
        for name in ("a", "b"):
            (self.folder / name / "go").touch()

    def row(self, name: str) -> ScheduledTask:
        """Return the row of the task that waits in that folder."""
        [row] = [r for r in ScheduledTask.objects.all() if r.args == [str(self.folder / name)]]
        return row

    def pid(self, name: str) -> int:
        """Return the process that runs the task."""
        pid = Worker.objects.get(pk=self.row(name).worker_id).pid
        assert pid is not None
        return pid


class WorkTests(SupervisorTestCase):
    """Several processes, one queue."""

    def test_they_share_the_backlog(self):
        """Each takes its part, in a name of its own; the end is one summary each, and code 0."""
        child = self.busy("-w", 1, "--drain", "-i", "mill")
        names = {self.row(name).worker_id for name in ("a", "b")}
        self.go()

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 2}, statuses())
        self.assertEqual({"mill-1", "mill-2"}, {str(name)[:6] for name in names})
        self.assertEqual(1, child.stderr.count("2 processes with 1 thread each, polling"))
        for number in (1, 2):
            self.assertIn(f"#{number} Worker mill-{number}-", child.stderr)
            self.assertIn(f"#{number} Ran 1 task in ", child.stdout)

    def test_a_failed_task_is_exit_code_3(self):
        """Whichever process ran it."""
        fail.enqueue()

        child = self.start("taskrunner", "--drain", "--processes", 2)

        self.assertEqual(3, child.end(), child.stderr)

    def test_processes_report_in_json(self):
        """Each object of a process says which one speaks, and whole lines reach the reader."""
        add.enqueue_many([((n, 1), {}) for n in range(100)])

        child = self.start("taskrunner", "--drain", "--json", "--processes", 2)

        self.assertEqual(0, child.end(), child.stderr)
        first, *rest = [json.loads(line) for line in child.stdout.splitlines()]
        self.assertEqual(("supervisor.started", 2), (first["event"], first["processes"]))
        self.assertEqual({1, 2}, {line["process"] for line in rest})
        self.assertTrue(all(line["worker_id"] for line in rest))
        self.assertEqual(2, sum(line["event"] == "runner.stopped" for line in rest))

    def test_however_it_was_started(self):
        """As a module too, with settings and path from the command line alone."""
        add.enqueue(1, 2)
        unset = ("DJANGO_SETTINGS_MODULE", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if k not in unset}
        flags = ["--drain", "--processes=2", "-v0", f"--pythonpath={ROOT}"]

        done = subprocess.run(
            [
                *(sys.executable, "-m", "django", "taskrunner", *flags),
                *("--settings", settings.SETTINGS_MODULE),
            ],
            cwd=self.folder,
            env=environment | {"TEST_DATABASE": database_url()},
            capture_output=True,
            text=True,
            timeout=60,
        )

        self.assertEqual((0, "", ""), (done.returncode, done.stdout, done.stderr))
        self.assertEqual({"SUCCESSFUL": 1}, statuses())


class DeathTests(SupervisorTestCase):
    """Processes that are killed."""

    def test_what_a_killed_process_held_is_started_again_at_once(self):
        """Long before its beat is missed; others' tasks go on, and another process takes over."""
        child = self.busy("-w", 2, TEST_WORKER_TIMEOUT="60")
        # Both rows may be in one process: only those of the killed one start again.
        pid = self.pid("a")
        held = {name: self.pid(name) == pid for name in ("a", "b")}
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        until(lambda: self.row("a").attempt == 2, "The second start")

        self.assertLess(time.monotonic() - began, 3)
        child.wait_for(f"(pid {pid}) was killed by SIGKILL; another starts now.")
        until(lambda: Worker.objects.filter(state="live").count() == 2, "Another process")
        self.go()
        until(lambda: statuses() == {"SUCCESSFUL": 2}, "The results")
        self.assertEqual(held, {name: self.row(name).lost == 1 for name in ("a", "b")})
        child.signal(signal.SIGTERM)
        self.assertEqual(0, child.end(), child.stderr)

    def test_a_drain_includes_what_a_killed_process_held(self):
        """The one that takes its place rescues it before it finds the queue empty."""
        child = self.busy("-w", 1, "--drain", TEST_WORKER_TIMEOUT="60")
        os.kill(self.pid("a"), signal.SIGKILL)
        until(lambda: self.row("a").attempt == 2, "The second start")
        self.go()

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 2}, statuses())

    def test_no_process_outlives_its_supervisor(self):
        """When that is killed they stop as on SIGTERM, and leave no row RUNNING."""
        child = self.busy("-w", 1)
        pids = list(Worker.objects.values_list("pid", flat=True))
        child.signal(signal.SIGKILL)
        for number in (1, 2):
            until(lambda n=number: f"#{n} The supervisor is gone: wait" in child.stderr, "It")
        self.go()
        until(lambda: not Worker.objects.exists(), "The end")
        child.end()

        self.assertEqual({"SUCCESSFUL": 2}, statuses())
        for pid in pids:
            until(lambda pid=pid: identity._started(pid) is None, "The end of a process")


class StopTests(SupervisorTestCase):
    """What signals do."""

    def test_sigterm_stops_all_processes(self):
        """Sent to the supervisor alone it reaches each process once: running tasks finish."""
        child = self.busy("-w", 1)
        add.enqueue(1, 2)
        child.signal(signal.SIGTERM)
        for number in (1, 2):
            child.wait_for(f"#{number} SIGTERM: waiting up to 30.0 s for 1 running task")
        self.go()

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 2, "READY": 1}, statuses())
        self.assertFalse(Worker.objects.exists())

    def test_ctrl_c_stops_all_processes(self):
        """A terminal sends it to all of them, and it is still the first for each."""
        child = self.busy("-w", 1)
        os.killpg(child.process.pid, signal.SIGINT)
        for number in (1, 2):
            child.wait_for(f"#{number} SIGINT: waiting up to 30.0 s for 1 running task")
        self.go()

        self.assertEqual(0, child.end(), child.stderr)
        self.assertEqual({"SUCCESSFUL": 2}, statuses())
        self.assertNotIn("leaving now", child.stderr)

    def test_a_second_signal_leaves_now(self):
        """Running tasks are requeued by each, and the code is 128 + its number."""
        child = self.busy("-w", 1)
        child.signal(signal.SIGTERM)
        for number in (1, 2):
            child.wait_for(f"#{number} SIGTERM: waiting")
        child.signal(signal.SIGINT)

        self.assertEqual(128 + signal.SIGINT, child.end(), child.stderr)
        self.assertEqual({"READY": 2}, statuses())

    def test_a_signal_that_comes_twice_at_once_counts_once(self):
        """GNU timeout sends it to its process and to the whole group."""
        for flags, count in ((["-w", 2], 1), (["-w", 1, "--processes", 2], 2)):
            with self.subTest(flags):
                for name in ("a", "b"):
                    (self.folder / name).mkdir(exist_ok=True)
                    wait_for_file.enqueue(str(self.folder / name))
                program = ("timeout", "600", *MANAGE)
                child = self.start("taskrunner", *flags, program=program)
                until(lambda: self.has_started("a") and self.has_started("b"), "The tasks")
                child.signal(signal.SIGTERM)
                until(lambda c=child, n=count: c.stderr.count(": waiting up to") == n, "The stop")
                self.go()

                self.assertEqual(0, child.end(), child.stderr)
                self.assertEqual({"SUCCESSFUL": 2}, statuses())
                ScheduledTask.objects.all().delete()
                for path in self.folder.glob("*/*"):
                    path.unlink()

    def test_grace_runs_out(self):
        """What takes longer is requeued; the exit code is 5."""
        child = self.busy("-w", 1, "--grace", "0.2")
        child.signal(signal.SIGTERM)

        self.assertEqual(5, child.end(), child.stderr)
        self.assertEqual({"READY": 2}, statuses())

    def test_sigterm_while_the_processes_start(self):
        """They stop as soon as they can, without a traceback."""
        child = self.start("taskrunner", "--processes", 2)
        child.wait_for("Stop with Ctrl-C")
        os.killpg(child.process.pid, signal.SIGTERM)

        self.assertEqual(0, child.end(), child.stderr)
        self.assertNotIn("Traceback", child.stderr)


class RefusalTests(ProcessTestCase):
    """What cannot start is said once, and not tried for ever."""

    def refused(self, wrong: str) -> str:
        """Return what a supervisor says whose processes cannot start."""
        child = self.start(
            *("taskrunner", "--processes", 2),
            DJANGO_SETTINGS_MODULE="tests.support.supervised_settings",
            TEST_WRONG=wrong,
        )
        self.assertEqual(1, child.end(), child.stderr)
        return child.stderr

    def test_the_sentence_of_the_process(self):
        """It is the last line, and stands there once."""
        said = self.refused("immediate")

        self.assertTrue(said.splitlines()[-1].startswith("CommandError: TASKS['default'] is immed"))
        self.assertEqual(1, said.count("is immediate"))

    def test_a_process_that_ends_without_a_word(self):
        """Its exit code is what there is to say."""
        said = self.refused("exit")

        self.assertRegex(said, r"CommandError: Process #\d .* exit code 2 before it was ready")

    def test_in_this_process(self):
        """call_command() has no command line that could be started once more."""
        with self.assertRaisesMessage(CommandError, "call_command()"):
            call_command("taskrunner", "--processes", "2", "-v", "0")
