"""Every command, block, table and link of the README and of the documentation.

A comment before each block says what is done with it. The blocks of one page are tried in order,
in a copy of the project that the README's quick start makes.

    run               each command runs and succeeds
    stays             each command starts, and ends with code 0 on SIGTERM
    write PATH        the file is written
    append PATH       the text is added to the file
    python            the lines run in the project's shell
    settings          the settings pass `manage.py check`, in place of those there
    long              what each command names exists; it would take too long to run
    demo, tests, benchmark, systemd, compose, procfile    tried by a test of its own
    recipe            tried by tests/system/test_recipes.py
    http              tried by tests/contrib/http/test_docs.py
    drawing           nothing
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import load_command_class
from django.db import connections
from django.test import SimpleTestCase, TransactionTestCase, tag

import dbtasks
import dbtasks.testing
from dbtasks import Periodic, Task
from dbtasks.backend import DatabaseBackend
from dbtasks.options.runner import FLAGS, WAIT
from tests.support.levels import LEVELS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "demo" / "deployment").rglob("README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
README = PAGES["README.md"]
BLOCK = re.compile(r"^<!-- (?P<do>[^>]+) -->\n```\w*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
TRIED = ("run", "stays", "write", "append", "python", "settings")
ALONE = (
    *("demo", "tests", "benchmark", "systemd", "compose", "procfile", "recipe", "http", "long"),
    "drawing",
)
# Sphinx's directives, which are no blocks.
DIRECTIVE = re.compile(r"^```\{.*?^```$", re.DOTALL | re.MULTILINE)
# The modules that need a library which is not there for every Python.
LIBRARIES = {"aws": "boto3", "cloudtasks": "google", "redis": "redis"}
VARIABLE = re.compile(r"\bDBTASKS_[A-Z_]+")
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")


def blocks(*kinds: str, page: str | None = None) -> list[tuple[str, str]]:
    """Return what to do with each block of those kinds, and its text, in order, of all pages."""
    texts = PAGES.values() if page is None else [PAGES[page]]
    found = [(block["do"], block["text"]) for text in texts for block in BLOCK.finditer(text)]
    return [(do, text) for do, text in found if do.split()[0] in kinds]


def table(page: str, heading: str, place: int = 0) -> dict[str, str]:
    """Return the first column and the rest of a table in the part of the page with that heading."""
    text = PAGES[page][PAGES[page].index(f"\n## {heading}\n") + 1 :]
    tables = re.findall(r"^(?:\|.*\n)+", text.split("\n## ")[0], re.MULTILINE)
    return dict(re.findall(r"^\| (`[^|]+) \| (.+) \|$", tables[place], re.MULTILINE))


def flags(command: str, app: str = "dbtasks") -> set[str]:
    """Return the command's own long flags."""
    parser = load_command_class(app, command).create_parser("manage.py", command)
    common = {"--help", "--version", "--verbosity", "--settings", "--pythonpath"}
    common |= {"--traceback", "--no-color", "--force-color", "--skip-checks"}
    own = {flag for action in parser._actions for flag in action.option_strings}
    return {flag for flag in own if flag.startswith("--")} - common


def anchors(text: str) -> set[str]:
    """Return the anchors of the page's headings, as GitHub and the documentation name them."""
    headings = re.findall(r"^#+ (.+)$", DIRECTIVE.sub("", BLOCK.sub("", text)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}


class PageTests(SimpleTestCase):
    """What the pages say of names, flags, options and files is what there is."""

    def test_every_block_is_marked_and_so_is_tried(self):
        """No block stands outside of these tests."""
        for page, text in PAGES.items():
            with self.subTest(page):
                fences = re.findall("^```", DIRECTIVE.sub("", text), re.MULTILINE)
                kinds = {block["do"].split()[0] for block in BLOCK.finditer(text)}

                self.assertEqual(len(fences), 2 * len(BLOCK.findall(text)))
                self.assertLessEqual(kinds, {*TRIED, *ALONE})

    def test_links_lead_somewhere(self):
        """Each link is a file, or a heading, that exists."""
        for page, text in PAGES.items():
            for link in LINK.findall(BLOCK.sub("", text)):
                with self.subTest(f"{page}: {link}"):
                    path, _, anchor = link.partition("#")
                    target = (ROOT / page).parent / path if path else ROOT / page
                    self.assertTrue(target.exists())
                    if anchor:
                        self.assertIn(anchor, anchors(target.read_text()))

    def test_the_options_table_lists_every_option_with_its_default(self):
        """The table and the backend agree."""
        rows = table("docs/options.md", "Options")
        shown = {name.strip("`"): rest.split(" | ")[0] for name, rest in rows.items()}
        options = DatabaseBackend("default", {"OPTIONS": {}}).config
        defaults: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(options)}

        self.assertEqual(list(defaults), list(shown))
        for name, value in defaults.items():
            text = shown[name].strip("`")
            if name != "retain":
                value = list(value) if isinstance(value, tuple) else value
                self.assertEqual(value, eval(text), name)

    def test_the_flags_tables_list_every_flag(self):
        """The tables and the commands' parsers agree."""
        pages = {
            "taskrunner": ("dbtasks", "docs/runner.md", "Flags"),
            "purgetasks": ("dbtasks", "docs/tasks.md", "Keep and delete finished rows"),
            "serve": (
                "dbtasks.contrib.serve",
                "docs/deployment.md",
                "Site and runner in one command",
            ),
        }
        for command, (app, page, heading) in pages.items():
            with self.subTest(command):
                shown = {f for name in table(page, heading) for f in re.findall(r"--[\w-]+", name)}

                self.assertEqual(flags(command, app), shown)

    def test_the_tables_of_runner_options_say_what_the_help_says(self):
        """Flags, defaults and meanings stand in the tables as they were declared."""
        shown = table("docs/runner.md", "Flags")
        variables = table("docs/deployment.md", "Environment variables")

        for name, flag in (FLAGS | {"wait": WAIT}).items():
            with self.subTest(name):
                names = ", ".join(f"`{each}`" for each in flag.names)
                self.assertEqual(f"{flag.otherwise} | {flag.meaning}", shown.get(names))
                if flag.variable is not None:
                    default, meaning = variables[f"`{flag.variable}`"].split(" | ")
                    self.assertEqual(flag.otherwise, default)
                    self.assertTrue(any(f"`{each}`" in meaning for each in flag.names), meaning)

    def test_the_flags_of_the_schedules_command(self):
        """The table and the help agree."""
        parser = load_command_class("dbtasks", "dbtasks").create_parser("manage.py", "dbtasks")
        [own] = [
            set(action.choices["periodic"]._option_string_actions)
            - set(parser._option_string_actions)
            for action in parser._actions
            if isinstance(action.choices, dict)
        ]
        shown = table("docs/periodic.md", "The command")

        self.assertEqual(own, {f for name in shown for f in re.findall(r"--[\w-]+", name)})

    def test_the_policies_table_lists_every_policy(self):
        """The table and Task agree."""
        names = {f.name for f in fields(Task)} - {"delay"}
        names -= {"func", "priority", "backend", "queue_name", "run_after", "takes_context"}

        self.assertEqual(names, {name.strip("`") for name in table("docs/tasks.md", "Policies")})

    def test_the_table_of_schedules_lists_every_field(self):
        """The table and Periodic agree."""
        shown = " ".join(table("docs/periodic.md", "When it runs", place=1))

        names = {f.name for f in fields(Periodic)} - {"spec"}
        self.assertEqual(names, set(re.findall(r"`(\w+)`", shown)) - {"Periodic"})

    def test_the_table_of_variables_lists_every_one(self):
        """The table and the code agree, but for what processes of ours tell each other."""
        sources = (ROOT / "dbtasks").rglob("*.py")
        named = {name for path in sources for name in VARIABLE.findall(path.read_text())}
        shown = table("docs/deployment.md", "Environment variables")

        self.assertEqual(named - {"DBTASKS_SUPERVISED"}, {*map(_bare, shown)})

    def test_the_table_of_checks_lists_every_one(self):
        """The table and the code agree."""
        sources = (ROOT / "dbtasks").rglob("*.py")
        ids = {id for path in sources for id in re.findall(r"dbtasks\.[EWI]\d+", path.read_text())}

        self.assertEqual(ids, {*map(_bare, table("docs/options.md", "Checks"))})

    def test_the_map_of_packages_is_the_package(self):
        """Names and levels are those that the walls hold."""
        part = PAGES["docs/internals.md"].split("\n## The packages\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", part, re.MULTILINE)
        shown = {name: int(level) for level, text in rows for name in re.findall(r"`(\w+)`", text)}

        self.assertEqual(LEVELS, shown)

    def test_files_that_are_named_exist(self):
        """Developers find what the pages send them to."""
        for page in ("docs/internals.md", "CONTRIBUTING.md"):
            for name in re.findall(r"`([\w/]+/(?:\w+\.\w+)?)`", PAGES[page]):
                with self.subTest(f"{page}: {name}"):
                    self.assertTrue((ROOT / name).exists() or (ROOT / "dbtasks" / name).exists())

    def test_the_reference_has_every_public_name(self):
        """No name that may be imported is left out, and none is there that is gone."""
        shown = set(re.findall(r":: (dbtasks[\w.]+)", PAGES["docs/reference.md"]))
        modules = (dbtasks, dbtasks.testing)
        public = {f"{m.__name__}.{name}" for m in modules for name in m.__all__}

        self.assertLessEqual(public, shown)

    def test_pip_is_not_the_only_way_to_uv(self):
        """Debian's Python, for example, refuses it outside of virtual environments (PEP 668)."""
        for page, text in PAGES.items():
            if "pip install uv" in text:
                with self.subTest(page):
                    self.assertIn("*externally managed*", text)
                    self.assertRegex(text, r"`pipx (run|install) uv\b")

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

    def test_long_commands_name_what_exists(self):
        """Programs, modules, tests and files of the commands that are not run are there."""
        for _, text in blocks("long"):
            for words in _commands(text):
                with self.subTest(shlex.join(words)):
                    for problem in _missing(words):
                        self.fail(problem)

    @tag("processes")
    def test_the_demo_runs(self):
        """The first command of the README does what it says."""
        [(_, text)] = blocks("demo")
        self.assertEqual("$ python -m pip install uv && uv run manage.py demo\n", text)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "poem.txt").write_text("one two\n")
            done = subprocess.run(
                [sys.executable, ROOT / "manage.py", "demo", folder],
                env=_environment() | {"DBTASKS_DATABASE": f"sqlite:///{folder}/demo.sqlite3"},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )

        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("poem.txt", done.stdout)

    @tag("processes")
    def test_the_benchmark_runs(self):
        """The command of the page prints its table."""
        [(_, text)] = blocks("benchmark")
        words = shlex.split(text.removeprefix("$ uv run "))
        with tempfile.TemporaryDirectory() as folder:
            words[words.index("--database") + 1] = f"sqlite:///{folder}/benchmark.sqlite3"
            done = subprocess.run(
                [sys.executable, ROOT / words[0], *words[1:]],
                env=_environment(),
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
        extras = {e for text in PAGES.values() for e in re.findall(r"dbtasks\[(\w+)\]", text)}

        self.assertIn("Python ≥ 3.12", README)
        self.assertEqual(">=3.12", project["requires-python"])
        self.assertEqual(extras, set(project["optional-dependencies"]))


def _bare(name: str) -> str:
    return name.strip("`")


def _environment() -> dict[str, str]:
    # Without compiled modules each of these processes would take three times as long.
    ours = {"DJANGO_SETTINGS_MODULE", "PYTHONDONTWRITEBYTECODE"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of the block."""
    for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE):
        yield shlex.split(line)


def _missing(words: list[str]) -> Iterator[str]:
    """Yield a sentence for each part of a developer's command that does not exist."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    while words and words[0] in ("--group", "--extra"):
        words = words[2:]
    if words[:2] == ["python", "-m"] and words[2] != "pip" and find_spec(words[2]) is None:
        yield f"There is no module {words[2]!r}."
    for word in words:
        if re.fullmatch(r"tests(\.\w+)+", word) and find_spec(word) is None:
            yield f"There is no module {word!r}."
        is_ours = "/" in word and "://" not in word and not word.startswith("build/")
        if is_ours and not (ROOT / word).exists():
            yield f"There is no file {word!r}."


@tag("processes")
class NewProjectTests(TransactionTestCase):
    """The pages from top to bottom, as a new user would."""

    available_apps = settings.INSTALLED_APPS
    project: Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.project = Path(folder)

    def setUp(self) -> None:
        super().setUp()
        self.cwd = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.written: list[str] = []
        self.lines: list[tuple[str, str]] = []

    def try_page(self, page: str) -> None:
        """Paste every block in order into the project of the quick start."""
        if page != "README.md":
            self.start_with_the_quick_start()
        self.page = page
        for do, text in blocks(*TRIED, page=page):
            kind, *words = do.split()
            if kind != "python":
                self.run_lines()
            with self.subTest(text.splitlines()[0]):
                getattr(self, f"do_{kind}")(text, *words)
        self.run_lines()
        self.import_what_was_written()

    def start_with_the_quick_start(self) -> None:
        """Copy the project that the quick start has made; make it first if need be."""
        made = self.project / "mysite"
        if not made.exists():
            quick = README[README.index("\n## Quick start\n") : README.index("\n## Features\n")]
            self.cwd, before = self.project, self.cwd
            for block in BLOCK.finditer(quick):
                kind, *words = block["do"].split()
                getattr(self, f"do_{kind}")(block["text"], *words)
            self.cwd, self.written = before, []
        self.cwd = shutil.copytree(made, self.cwd / "mysite")

    def do_run(self, text: str) -> None:
        """Run each command; all of them must succeed."""
        for words in _commands(text):
            if words[0] == "cd":
                self.cwd /= words[1]
            elif words[:3] != ["python", "-m", "pip"]:
                printed = self.run_words(words)
                if words[-2:] == ["taskrunner", "--drain"] and self.page_is_readme():
                    self.assertIn("mysite.tasks.greet", printed)

    def page_is_readme(self) -> bool:
        return getattr(self, "page", "README.md") == "README.md"

    def do_stays(self, text: str) -> None:
        """Start each command, wait until it runs, and stop it."""
        for words in _commands(text):
            if "serve" in words and find_spec("granian") is None:
                continue
            runner = subprocess.Popen(
                [sys.executable, *words[1:]],
                cwd=self.cwd,
                env=self.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert runner.stderr is not None
            self.addCleanup(runner.stderr.close)
            self.addCleanup(runner.kill)
            said = []
            for line in runner.stderr:
                said.append(line)
                if "Ctrl-C" in line:
                    break
            runner.send_signal(signal.SIGTERM)
            said += runner.stderr.readlines()
            self.assertEqual(0, runner.wait(20), "".join(said))

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
        return _environment() | {"PYTHONPATH": str(ROOT)}

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
        """Check a block of settings in place of those there, unless it needs what is missing."""
        if any(
            f"dbtasks.contrib.{name}" in text and not find_spec(LIBRARIES[name])
            for name in LIBRARIES
        ):
            return
        path = self.cwd / "mysite" / "settings.py"
        before = path.read_text()
        path.write_text(f"{before}\n{text}")
        self.assertIn("no issues", self.run_words(["python", "manage.py", "check"]))
        path.write_text(before)

    def do_write(self, text: str, name: str) -> None:
        """Write a file."""
        (self.cwd / name).write_text(text)
        if name.endswith("tests.py") or "/" not in name:
            compile(text, name, "exec")
        else:
            self.written.append(name.removesuffix(".py").replace("/", "."))

    def do_python(self, text: str) -> None:
        """Keep the lines, to run them together with those of the next blocks."""
        self.lines.append((f"{self.page}: {text.splitlines()[0]}", text))

    def run_lines(self) -> None:
        """Run what was kept in the project's shell, each block for itself."""
        if self.lines:
            blocks, self.lines = self.lines, []
            each = f"for name, text in {blocks!r}: exec(compile(text, name, 'exec'), {{}})"
            self.run_words(["python", "manage.py", "shell", "-c", each])

    def import_what_was_written(self) -> None:
        """Import the modules that the page has written."""
        if self.written:
            lines = "\n".join(f"import {module}" for module in self.written)
            self.run_words(["python", "manage.py", "shell", "-c", lines])


def _test_of(page: str) -> Callable[[NewProjectTests], None]:
    def test(self: NewProjectTests) -> None:
        self.try_page(page)

    test.__doc__ = f"Try the blocks of {page}."
    return test


for page in PAGES:
    if blocks(*TRIED, page=page):
        name = re.sub(r"\W+", "_", page.removesuffix(".md").lower())
        setattr(NewProjectTests, f"test_blocks_of_{name}", _test_of(page))
