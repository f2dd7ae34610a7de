"""OPTIONS, and what check says of them."""

from datetime import timedelta
from typing import Any

from django.core import checks
from django.db import connections
from django.test import SimpleTestCase, override_settings

from dbtasks import Duration, DurationError, options
from dbtasks.checks import check_backends

from ..support.backends import backend


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
            timedelta(minutes=1): 60,
        }.items():
            with self.subTest(value):
                self.assertEqual(seconds, Duration(value).total_seconds())

    def test_refuses_what_is_none(self):
        """Zero, garbage and numbers without a unit are errors, never 0 seconds."""
        for value in (
            "forever",
            "90x",
            "",
            "90",
            "7d!",
            0,
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

    def test_a_mapping_by_path_and_status(self):
        """The path wins over the status, the status over the rest."""
        rules = {"a.b": "1d", "FAILED": "30d", "*": None}

        self.assertEqual(timedelta(days=1), self.retain(rules))
        self.assertEqual(timedelta(days=30), self.retain(rules, "a.c"))
        self.assertIsNone(self.retain(rules, "a.c", "SUCCESSFUL"))


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
        }
        self.assertEqual(["dbtasks.E002"] * len(wrong), self.ids(OPTIONS=wrong))
        text = self.messages(OPTIONS=wrong)
        self.assertIn("Did you mean 'retain'?", text)
        self.assertIn("'gone' is not in DATABASES", text)
        self.assertIn("Known options: immediate,", text)

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

    def test_checks_of_queues(self):
        """Queues are short names in a list, and the default one is missed when it is lost."""
        self.assertEqual(["dbtasks.W001"], self.ids(QUEUES=["mail"]))
        self.assertEqual([], self.ids(QUEUES=[]))
        self.assertIn("dbtasks.E004", self.ids(QUEUES="default"))
        self.assertEqual(["dbtasks.E005"], self.ids(QUEUES=["default", "q" * 101]))

    def test_checks_of_databases(self):
        """What a database lacks is said before it hurts."""
        connection = connections["default"]
        found = {
            "sqlite": ({}, "dbtasks.W002"),
            "mysql": ({"isolation_level": "repeatable read"}, "dbtasks.W003"),
            "postgresql": ({"pool": True}, "dbtasks.W004"),
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
