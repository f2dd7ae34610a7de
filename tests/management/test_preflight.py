"""What keeps a command from starting is one sentence, the right one."""

from unittest import mock

from django.core.management import CommandError
from django.db import connections
from django.test import SimpleTestCase, TransactionTestCase, tag

from dbtasks.console import preflight
from dbtasks.models import TABLE

from ..support.projects import run_in_project
from ..support.rows import DB, vendor

# In a process of its own, which begins without a backend.
CODE = """
import pathlib
import django
django.setup()
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

def say(*words, **tasks):
    with override_settings(TASKS=tasks):
        try:
            call_command(*words, skip_checks=False, verbosity=0)
        except CommandError as error:
            print(error)

ours = {"BACKEND": "dbtasks.backend.DatabaseBackend"}
say("taskrunner", "--drain")
for words in (["taskrunner", "--drain"], ["dbtasks", "periodic"]):
    say(*words, default={"BACKEND": "dbtasks.backend.DatabaseBackendd"})
say("purgetasks", "--older-than", "1d", default={})
say("taskrunner", "--drain", default=ours)
pathlib.Path("garbage").write_bytes(bytes(range(256)) * 20)
# close() keeps a database in memory.
connections["default"].connection = None
connections["default"].settings_dict["NAME"] = "garbage"
say("taskrunner", "--drain", default=ours)
"""


class StartTests(SimpleTestCase):
    """Mistakes in settings, in a project of its own."""

    @tag("processes")
    def test_each_mistake_has_its_sentence(self):
        """Not a traceback, and not "migrate" where that would not help."""
        files = {"../bare.py": "from settings import *\nTASKS = {}"}
        code = f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'bare'\n{CODE}"
        done = run_in_project(files, "-c", code)

        typo = "TASKS['default'] is not valid: Could not find backend 'dbtasks.backend.Data"
        expected = [
            "There is no backend 'default' in TASKS. TASKS is empty.",
            typo,
            typo,
            "TASKS['default'] is not valid: it has no 'BACKEND'.",
            "The database 'default' is in memory, so each process has its own, which is empty: ",
            "The database 'default' is not a valid SQLite file: file is not a database. Check its",
        ]
        lines = done.stdout.splitlines()
        self.assertEqual(len(expected), len(lines), done.stdout + done.stderr)
        for line, begin in zip(lines, expected, strict=True):
            self.assertIn(begin, line)
        self.assertNotIn("migrate", done.stdout)


class DatabaseTests(TransactionTestCase):
    """What a database refuses."""

    def said(self, **options: bool) -> str:
        """Return why the command cannot start."""
        with self.assertRaises(CommandError) as caught:
            preflight.check_database(DB, **options)
        return str(caught.exception)

    def run_sql(self, *statements: str) -> None:
        with connections[DB].cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)

    def test_a_database_that_takes_all_is_silent(self):
        """Nothing is changed by the question."""
        with self.assertNumQueries(7):
            preflight.check_database(DB)

    def test_a_read_only_database(self):
        """After a failover to the wrong node, or of a file. It may still be read."""
        self.run_sql(
            {
                "postgresql": "SET default_transaction_read_only = on",
                "mysql": "SET SESSION TRANSACTION READ ONLY",
                "sqlite": "PRAGMA query_only = 1",
            }[vendor()]
        )
        self.addCleanup(connections[DB].close)

        said = self.said()
        self.assertIn(f"The database {DB!r} is read-only: ", said)
        self.assertNotIn("migrate", said)
        preflight.check_database(DB, writes=False)

    def test_a_user_without_privileges(self):
        """The sentence names those that are needed."""
        if vendor() != "postgresql":
            self.skipTest("needs a role, which a session may take")
        # Roles belong to the whole server.
        role = f"{connections[DB].settings_dict['NAME']}_reader"
        self.run_sql(
            f"DROP ROLE IF EXISTS {role}",
            f"CREATE ROLE {role}",
            f"GRANT SELECT ON {TABLE} TO {role}",
        )
        self.addCleanup(self.run_sql, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
        self.addCleanup(connections[DB].close)
        self.run_sql(f"SET ROLE {role}")

        self.assertIn("Grant it SELECT, INSERT, UPDATE and DELETE on the tables", self.said())
        preflight.check_database(DB, writes=False)

    def test_a_database_without_autocommit(self):
        """Embedded runners run no system checks."""
        settings_dict = connections[DB].settings_dict | {"AUTOCOMMIT": False}
        with mock.patch.object(connections[DB], "settings_dict", settings_dict):
            self.assertIn("sets AUTOCOMMIT to False", self.said())
