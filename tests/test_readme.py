"""Every command and block of the README, tried in a new project."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import load_command_class
from django.db import connections
from django.test import SimpleTestCase, TransactionTestCase, tag

from dbtasks.options import Options
from dbtasks.task import Task

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- (?P<do>[^>]+) -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)


def blocks(*kinds: str) -> list[tuple[str, str]]:
    """Return what to do with each marked block of those kinds, and its text, in order."""
    found = [(block["do"], block["text"]) for block in BLOCK.finditer(README)]
    return [(do, text) for do, text in found if do.split()[0] in kinds]


def table(heading: str) -> dict[str, str]:
    """Return the first column and the rest of the first table after that heading."""
    text = README[README.index(f"\n## {heading}\n") :]
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", text.split("\n## ")[1], re.MULTILINE)
    return dict(rows)


class PageTests(SimpleTestCase):
    """What the page says of names, flags and options is what there is."""

    def test_every_block_is_marked_and_so_is_tried(self):
        """No block stands outside of these tests, but the two drawings of how it works."""
        fences = README.count("\n```") // 2

        self.assertEqual(fences - 2, len(BLOCK.findall(README)))

    def test_the_options_table_lists_every_option_with_its_default(self):
        """The table and the dataclass agree."""
        shown = {name.strip("`"): rest.split(" | ")[0] for name, rest in table("Settings").items()}
        defaults: dict[str, Any] = {f.name: getattr(Options(), f.name) for f in fields(Options)}

        self.assertEqual(list(defaults), list(shown))
        for name, value in defaults.items():
            text = shown[name].strip("`")
            if name != "retain":
                value = list(value) if isinstance(value, tuple) else value
                self.assertEqual(value, eval(text), name)

    def test_the_flags_table_lists_every_flag(self):
        """The table and the command's parser agree."""
        parser = load_command_class("dbtasks", "taskrunner").create_parser(
            "manage.py", "taskrunner"
        )
        own = {
            option
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        }
        common = {"--help", "--version", "--verbosity", "--settings", "--pythonpath"}
        common |= {"--traceback", "--no-color", "--force-color", "--skip-checks"}
        shown = {flag for name in table("The runner") for flag in re.findall(r"--[\w-]+", name)}

        self.assertEqual(own - common, shown)

    def test_the_policies_table_lists_every_policy(self):
        """The table and Task agree."""
        names = {f.name for f in fields(Task)} - {"delay"}
        names -= {"func", "priority", "backend", "queue_name", "run_after", "takes_context"}

        self.assertEqual(names, {name.strip("`") for name in table("Tasks")})

    def test_the_deployment_files_name_commands_that_exist(self):
        """systemd, Compose and Procfile start the runner with flags it knows."""
        [(_, unit)] = blocks("systemd")
        [(_, compose)] = blocks("compose")
        [(_, procfile)] = blocks("procfile")
        service = ConfigParser(interpolation=None)
        service.optionxform = str  # type: ignore[assignment,method-assign]
        service.read_string(unit)
        [command] = re.findall(r"command: (\[.+\])", compose)
        lines = [service["Service"]["ExecStart"], " ".join(eval(command))]
        lines += re.findall(r"^worker: (.+)$", procfile, re.MULTILINE)

        parser = load_command_class("dbtasks", "taskrunner").create_parser(
            "manage.py", "taskrunner"
        )
        for line in lines:
            words = shlex.split(line)
            self.assertEqual(["manage.py", "taskrunner"], words[1:3])
            grace = parser.parse_args(words[3:]).grace
            self.assertGreater(45, grace)
        self.assertGreater(int(service["Service"]["TimeoutStopSec"]), grace)

    @tag("processes")
    def test_the_benchmark_runs(self):
        """The command of the page prints its table."""
        [(_, text)] = blocks("benchmark")
        words = shlex.split(text.removeprefix("$ uv run "))
        with tempfile.TemporaryDirectory() as folder:
            words[words.index("--database") + 1] = f"sqlite:///{folder}/benchmark.sqlite3"
            done = subprocess.run(
                [sys.executable, ROOT / words[0], *words[1:]],
                env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )

        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("| taskrunner --drain, no flags, 2,000 no-op tasks |", done.stdout)

    def test_requirements_are_those_of_the_package(self):
        """Versions on the page and in pyproject.toml agree."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

        self.assertIn("Python ≥ 3.12", README)
        self.assertEqual(">=3.12", project["requires-python"])
        self.assertLessEqual({"postgres", "mysql"}, project["optional-dependencies"].keys())


@tag("processes")
class NewProjectTests(TransactionTestCase):
    """The page from top to bottom, as a new user would."""

    available_apps = settings.INSTALLED_APPS

    def test_the_quick_start_and_what_follows_work_in_a_new_project(self):
        """Paste every block in order into a project made with startproject."""
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.cwd = Path(folder)
        for do, text in blocks("run", "append", "write", "python", "settings"):
            with self.subTest(text.splitlines()[0]):
                getattr(self, f"do_{do.split()[0]}")(text, *do.split()[1:])
        self.stops_on_sigterm()

    def do_run(self, text: str) -> None:
        """Run each command; all of them must succeed."""
        for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE):
            words = shlex.split(line)
            if words[0] == "cd":
                self.cwd /= words[1]
            elif words[:3] != ["python", "-m", "pip"]:
                printed = self.run_words(words)
                if "taskrunner --drain" in line:
                    self.assertIn("mysite.tasks.greet", printed)

    def run_words(self, words: list[str]) -> str:
        tools = {"python": [sys.executable], "django-admin": [sys.executable, "-m", "django"]}
        done = subprocess.run(
            [*tools[words[0]], *words[1:]],
            cwd=self.cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(ROOT)}
        return {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"} | own

    def do_append(self, text: str, name: str) -> None:
        """Add to a file; on a server, let the project use the database under test."""
        path = self.cwd / name
        path.write_text(f"{path.read_text()}\n{text}")
        if connections["default"].vendor != "sqlite":
            entry = {
                key: connections["default"].settings_dict[key]
                for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
            }
            # Its tests get a database of their own, beside those of this test.
            entry["TEST"] = {"NAME": f"{entry['NAME']}_readme"}
            path.write_text(f"{path.read_text()}\nDATABASES['default'] = {entry!r}\n")

    def do_settings(self, text: str) -> None:
        """Check a block of settings in place of those there."""
        path = self.cwd / "mysite" / "settings.py"
        before = path.read_text()
        path.write_text(f"{before}\n{text}")
        self.assertIn("no issues", self.run_words(["python", "manage.py", "check"]))
        path.write_text(before)

    def do_write(self, text: str, name: str) -> None:
        """Write a file."""
        (self.cwd / name).write_text(text)

    def do_python(self, text: str) -> None:
        """Run the lines in the project's shell."""
        self.run_words(["python", "manage.py", "shell", "-c", text])

    def stops_on_sigterm(self) -> None:
        """A runner without flags stays until it is told to go."""
        runner = subprocess.Popen(
            [sys.executable, "manage.py", "taskrunner"],
            cwd=self.cwd,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert runner.stderr is not None
        self.addCleanup(runner.stderr.close)
        self.addCleanup(runner.kill)
        runner.stderr.readline()
        runner.send_signal(signal.SIGTERM)
        self.assertEqual(0, runner.wait(20))
