"""OPTIONS, and what check says of them."""

from contextvars import Context
from datetime import timedelta
from typing import Any
from unittest import mock

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.tasks import task_backends
from django.test import SimpleTestCase, override_settings

from dbtasks import Duration, DurationError, options
from dbtasks.checks import check_backends
from dbtasks.options import parse

from ..support.backends import backend
from ..support.projects import run_in_project


class DurationTests(SimpleTestCase):
    """Duration"""

    def test_reads_what_people_write(self):
        """Text with units, seconds and timedeltas."""
        for value, seconds in {
            "7d": 604_800,
            "1h30m": 5400,
            "90s": 90,
            "1.5h": 5400,
            " 2W ": 1_209_600,
            15: 15,
            0.5: 0.5,
            "90": 90,
            " 1.5 ": 1.5,
            timedelta(minutes=1): 60,
        }.items():
            with self.subTest(value):
                self.assertEqual(seconds, Duration(value).total_seconds())

    def test_refuses_what_is_none(self):
        """Zero and garbage are errors, never 0 seconds."""
        for value in (
            "forever",
            "90x",
            "",
            "-90",
            "9_0",
            "1e3",
            "7d!",
            0,
            "0",
            "0s",
            -1,
            float("nan"),
            float("inf"),
            None,
            True,
            [],
        ):
            with self.subTest(value), self.assertRaisesMessage(DurationError, "such as '90s'"):
                Duration(value)

    def test_shows_itself_as_it_is_written(self):
        """str() reads back as the same duration."""
        for text in ("1w", "1h30m", "1d12h", "2m0.5s", "90s"):
            self.assertEqual(Duration(text), Duration(str(Duration(text))))
        self.assertEqual("1h30m", str(Duration(5400)))


class RetainTests(SimpleTestCase):
    """OPTIONS["retain"]"""

    def retain(self, value: Any, path: str = "a.b", status: str = "FAILED") -> Any:
        return options.parse("default", {"retain": value}).retain(path, status)

    def test_one_duration_for_all(self):
        """A duration holds for every row; None is for ever."""
        self.assertEqual(timedelta(days=7), self.retain("7d"))
        self.assertEqual(timedelta(days=7), self.retain(timedelta(days=7)))
        self.assertEqual(timedelta(seconds=60), self.retain(60))
        self.assertIsNone(self.retain(None))
        self.assertIsNone(options.parse("default", {}).retain("a.b", "FAILED"))

    def test_zero_is_not_at_all(self):
        """However it is written; it is not the same as None."""
        for zero in (0, "0", "0s", 0.0, timedelta(0)):
            with self.subTest(zero):
                self.assertEqual(timedelta(0), self.retain(zero))
        self.assertEqual(timedelta(0), self.retain({"FAILED": 0, "*": "7d"}))
        for wrong in (-1, "-1s", True, ""):
            with self.subTest(wrong), self.assertRaises(ImproperlyConfigured):
                self.retain(wrong)

    def test_a_mapping_by_path_and_status(self):
        """The path wins over the status, the status over the rest."""
        rules = {"a.b": "1d", "FAILED": "30d", "*": None}

        self.assertEqual(timedelta(days=1), self.retain(rules))
        self.assertEqual(timedelta(days=30), self.retain(rules, "a.c"))
        self.assertIsNone(self.retain(rules, "a.c", "SUCCESSFUL"))


class ParsedOnceTests(SimpleTestCase):
    """OPTIONS are parsed once in a process, not in every thread and context."""

    def parses(self, options: dict[str, Any]) -> int:
        """Return how often OPTIONS are parsed while ten contexts use the backend."""
        with (
            override_settings(TASKS=backend(OPTIONS=options)),
            mock.patch("dbtasks.options.backend.parse", wraps=parse) as parsing,
        ):
            for _ in range(10):
                # In a context of its own Django makes a backend of its own.
                Context().run(lambda: task_backends["default"].config)
            return parsing.call_count

    def test_contexts_share_what_was_parsed(self):
        """Each attempt of a task is a context of its own."""
        self.assertEqual(1, self.parses({"periodic": {"a.b": "1 2 3 4 *"}}))

    def test_other_settings_are_parsed_anew(self):
        """override_settings() counts at once, and so does its end."""
        before = task_backends["default"].config.max_attempts
        for number in (5, 6):
            with override_settings(TASKS=backend(OPTIONS={"max_attempts": number})):
                self.assertEqual(number, task_backends["default"].config.max_attempts)
        self.assertEqual(before, task_backends["default"].config.max_attempts)

    def test_a_dict_that_was_changed_is_parsed_anew(self):
        """As soon as Django says that settings have changed."""
        options = {"max_attempts": 5}
        tasks = backend(OPTIONS=options)
        with override_settings(TASKS=tasks):
            self.assertEqual(5, task_backends["default"].config.max_attempts)
        options["max_attempts"] = 6
        with override_settings(TASKS=tasks):
            self.assertEqual(6, task_backends["default"].config.max_attempts)

    def test_invalid_options_are_an_error_each_time(self):
        """A mistake is not remembered as if it were none."""
        with override_settings(TASKS=backend(OPTIONS={"timeout": "long"})):
            for _ in range(2):
                with self.assertRaises(ImproperlyConfigured):
                    Context().run(lambda: task_backends["default"].config)


class CheckTests(SimpleTestCase):
    """manage.py check"""

    # Django's own checks ask MySQL for its version.
    databases = "__all__"

    def ids(self, **params: Any) -> list[str]:
        with override_settings(TASKS=backend(**params)):
            return [m.id for m in checks.run_checks() if (m.id or "").startswith("dbtasks")]

    def messages(self, **params: Any) -> str:
        with override_settings(TASKS=backend(**params)):
            return " ".join(m.msg for m in checks.run_checks())

    def test_good_settings_are_silent(self):
        """No message where nothing is wrong."""
        self.assertEqual([], self.ids(OPTIONS={"retain": {"*": "7d"}, "signals": False}))

    def test_every_wrong_option_is_named_at_once(self):
        """One run of check shows them all, each with what is allowed."""
        wrong = {
            "retian": 1,
            "nonsense": 1,
            "immediate": "yes",
            "retain": "forever",
            "database": "gone",
            "signals": None,
            "enqueue_on_commit": "gone",
            "task_modules": "x",
            "max_payload": 0,
            "max_releases": 0,
        }
        self.assertEqual(["dbtasks.E002"] * len(wrong), self.ids(OPTIONS=wrong))
        text = self.messages(OPTIONS=wrong)
        self.assertIn("Did you mean 'retain'?", text)
        self.assertIn("'gone' is not in DATABASES", text)
        self.assertIn("Known options: immediate,", text)

    def test_the_limit_of_releases(self):
        """A whole number, or None."""
        for value in (1, 5, None):
            with override_settings(TASKS=backend(OPTIONS={"max_releases": value})):
                self.assertEqual(value, task_backends["default"].config.max_releases)
        for value in (0, -1, True, 2.0, "3"):
            text = self.messages(OPTIONS={"max_releases": value})
            self.assertIn(f"{value!r} is not a valid number of releases.", text)

    def test_options_that_are_no_dict(self):
        """OPTIONS itself may be wrong."""
        self.assertEqual(["dbtasks.E002"], self.ids(OPTIONS=["retain"]))

    def test_check_of_a_missing_app(self):
        """Without the app there is no table."""
        from django.apps import apps
        from django.tasks import task_backends

        self.enterContext(self.modify_settings(INSTALLED_APPS={"remove": "dbtasks"}))
        self.assertFalse(apps.is_installed("dbtasks"))
        self.assertEqual(["dbtasks.E001"], [m.id for m in task_backends["default"].check()])

    def test_a_missing_app_is_said_at_check_and_at_enqueue(self):
        """In the same words, also if the task is imported as late as by the URLs."""
        code = (
            "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'bare'; import django; "
            "django.setup(); from django.core import checks; import django.tasks; "
            "print([m.id for m in checks.run_checks()])\n"
            "from django.core.exceptions import ImproperlyConfigured\n"
            "try: from shop.views import hello\n"
            "except ImproperlyConfigured as error: print(error)\n"
            "from django.tasks import task_backends\n"
            "try: task_backends['default'].enqueue(early.hello, [], {})\n"
            "except ImproperlyConfigured as error: print(error)\n"
        )
        files = {
            "../bare.py": "from settings import *\nINSTALLED_APPS = ['shop']",
            "views.py": "from django.tasks import task\n@task\ndef hello(): pass",
            # Imported before Django can know which apps there are.
            "models.py": "from shop import early",
            "early.py": "from django.tasks import task\n@task\ndef hello(): pass",
        }
        done = run_in_project(
            files, "-c", f"{code}".replace("early.", "__import__('shop.early').early.")
        )

        said = "TASKS['default'] uses dbtasks, which is not in INSTALLED_APPS."
        self.assertEqual(["['dbtasks.E001']", said, said], done.stdout.splitlines(), done.stderr)

    def test_checks_of_keys_beside_options(self):
        """Options that stand one level too high do nothing."""
        for key, hint in {
            "retain": "Write it inside of OPTIONS, as 'retain'.",
            "MAX_ATTEMPTS": "Write it inside of OPTIONS, as 'max_attempts'.",
            "QUEUE": "Did you mean 'QUEUES'?",
            "options": "Did you mean 'OPTIONS'?",
            "XYZ": "The keys are 'BACKEND', 'QUEUES', 'OPTIONS'.",
        }.items():
            with self.subTest(key), override_settings(TASKS=backend(**{key: {}})):
                [message] = check_backends()
                self.assertEqual("dbtasks.W006", message.id)
                self.assertIn(f"unknown key {key!r}", message.msg)
                self.assertEqual(hint, message.hint)

    def test_check_of_an_app_that_is_not_used(self):
        """Somebody forgot TASKS."""
        dummy = "django.tasks.backends.dummy.DummyBackend"
        for tasks in ({}, {"default": {"BACKEND": dummy}}):
            with self.subTest(tasks), override_settings(TASKS=tasks):
                self.assertEqual(["dbtasks.W005"], [message.id for message in check_backends()])

    def test_check_of_paths_in_retain(self):
        """A misspelt one keeps rows for ever."""
        retain = {"tests.tasks.ad": "1d", "tests.tasks.add": "1d", "FAILED": 0, "*": "7d"}
        with override_settings(TASKS=backend(OPTIONS={"retain": retain})):
            [message] = check_backends()

        self.assertEqual("dbtasks.W008", message.id)
        self.assertIn("'tests.tasks.ad', which is not a task", message.msg)
        self.assertEqual("Did you mean 'tests.tasks.add'?", message.hint)

    def test_check_of_modules_that_cannot_be_imported(self):
        """The other modules' tasks still run."""
        options = {"task_modules": ["tests.support.gone"]}
        with (
            self.assertLogs("dbtasks.registry"),
            override_settings(TASKS=backend(OPTIONS=options)),
        ):
            [message] = check_backends()

        self.assertEqual("dbtasks.W007", message.id)
        self.assertIn("tests.support.gone cannot be imported", message.msg)

    def test_hints_about_lines_that_other_crons_read_differently(self):
        """Only for lines of settings, and only for what is really read differently."""
        for text, count in {
            "5/10 * * * *": 1,
            "5-59/10 * * * *": 0,
            "*/10 */2 * * *": 0,
            "0 0 */2 * 1": 1,
            "0 0 * * */2": 0,
            "0 0 1 * 1": 0,
            "1/5 0/6 */2 * */3": 3,
            "@daily": 0,
            "5m": 0,
        }.items():
            periodic = {"tests.tasks.noop_task": text}
            with (
                self.subTest(text),
                override_settings(TASKS=backend(OPTIONS={"periodic": periodic})),
            ):
                self.assertEqual(["dbtasks.I001"] * count, [m.id for m in check_backends()])

    def test_checks_of_queues(self):
        """Queues are short names in a list, and the default one is missed when it is lost."""
        self.assertEqual(["dbtasks.W001"], self.ids(QUEUES=["mail"]))
        second = backend() | {"mail": backend(QUEUES=["mail"])["default"]}
        with override_settings(TASKS=second):
            self.assertEqual([], check_backends())
        self.assertEqual([], self.ids(QUEUES=[]))
        self.assertIn("dbtasks.E004", self.ids(QUEUES="default"))
        self.assertEqual(["dbtasks.E005"], self.ids(QUEUES=["default", "q" * 101]))

    def test_check_of_a_database_without_autocommit(self):
        """Nothing that a runner writes would be committed."""
        settings_dict = connections["default"].settings_dict | {"AUTOCOMMIT": False}
        with mock.patch.object(connections["default"], "settings_dict", settings_dict):
            [message] = check_backends()

        self.assertEqual("dbtasks.E007", message.id)

    def test_check_of_a_driver_that_does_not_work(self):
        """It gives bytes for texts, and other errors for deadlocks."""
        settings_dict = connections["default"].settings_dict | {"ENGINE": "mysql.connector.django"}
        with mock.patch.object(connections["default"], "settings_dict", settings_dict):
            [message] = check_backends()

        self.assertEqual("dbtasks.E008", message.id)

    def test_checks_of_databases(self):
        """What a database lacks is said before it hurts."""
        connection = connections["default"]
        found = {
            "sqlite": ({}, "dbtasks.W002"),
            "mysql": ({"isolation_level": "repeatable read"}, "dbtasks.W003"),
            "postgresql": ({"pool": {"max_size": 3}}, "dbtasks.W004"),
            "oracle": ({}, "dbtasks.E006"),
        }
        for vendor, (database_options, id) in found.items():
            with self.subTest(vendor), self.settings(), patch(connection, vendor, database_options):
                self.assertEqual([id], [message.id for message in check_backends()])


def patch(connection: Any, vendor: str, database_options: dict[str, Any]) -> Any:
    """Let the connection be of another vendor, with other options, for a while."""
    from contextlib import ExitStack
    from unittest import mock

    stack = ExitStack()
    stack.enter_context(mock.patch.object(connection, "vendor", vendor))
    settings_dict = connection.settings_dict | {"OPTIONS": database_options}
    stack.enter_context(mock.patch.object(connection, "settings_dict", settings_dict))
    stack.enter_context(mock.patch("dbtasks.checks.default_workers", return_value=2))
    return stack
