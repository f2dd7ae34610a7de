"""Databases of MySQL and MariaDB whose character set is not utf8mb4."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.core.management import call_command
from django.db import connections
from django.test import SimpleTestCase

from dbtasks import store
from dbtasks.calls import uuid7
from dbtasks.models import TABLE, ScheduledTask
from dbtasks.store.dialects import mysql

from ..support.rows import DB, outcome, vendor

ALIAS = "foreign_charset"
NAMES = ("mail", "Mail", "почта", "メール", "🐌")


@contextmanager
def database(charset: str, has_uuid: bool) -> Iterator[None]:
    """Migrate a database with that character set as the alias; drop it at the end."""
    entry = connections[DB].settings_dict
    entry = entry | {"NAME": f"{entry['NAME']}_{charset}"}
    name = connections[DB].ops.quote_name(entry["NAME"])
    with connections[DB].cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET {charset}")
    connections.databases[ALIAS] = entry
    mysql._text_of_ids.cache_clear()
    features = type(connections[ALIAS].features)
    try:
        with mock.patch.object(features, "has_native_uuid_field", has_uuid):
            call_command("migrate", "dbtasks", database=ALIAS, verbosity=0)
            yield
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]
        with connections[DB].cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


class CharsetTests(SimpleTestCase):
    """The tables of dbtasks are the same in each of them."""

    databases = {DB}

    @classmethod
    def setUpClass(cls) -> None:
        # Not earlier: the test runner would look for this database before it is there.
        connections.databases[ALIAS] = connections[DB].settings_dict
        cls.databases = {DB, ALIAS}
        super().setUpClass()
        del connections.databases[ALIAS]

    def setUp(self) -> None:
        if vendor() != "mysql":
            self.skipTest("other databases have one character set")

    def new(self, name: str) -> store.NewTask:
        return store.NewTask(
            store.pk_text(ALIAS, uuid7()), name, name, name, 0, f'["{name}"]', "{}", None, None,
            store.now(ALIAS), None,
        )  # fmt: skip

    def claim(self, name: str) -> list[store.Claim]:
        return store.claim(ALIAS, name, f"w-{name}", 10, [name])

    def check(self) -> None:
        """Write, claim and settle rows with names of every kind, alone and in batches."""
        store.enqueue(ALIAS, [self.new(name) for name in NAMES for _ in range(3)])
        claims = [claim for name in NAMES for claim in self.claim(name)]
        self.assertEqual(len(NAMES) * 3, len(claims))
        for batch in (claims[:1], claims[1:]):
            ends = [outcome(claim, return_value=claim.args) for claim in batch]
            self.assertEqual({claim.id for claim in batch}, store.settle(ALIAS, ends))
            self.assertEqual({claim.id for claim in batch}, store.settle(ALIAS, ends))
        for row in ScheduledTask.objects.using(ALIAS):
            self.assertEqual(("SUCCESSFUL", [row.queue_name]), (row.status, row.return_value))
        self.assertEqual(0, store.purge(ALIAS, "mail"))

    def test_each_character_set_holds_every_name(self):
        """Names that differ in case stay apart, and no statement mixes collations."""
        for charset in ("utf8mb4", "utf8mb3", "latin1"):
            for has_uuid in {False, connections[DB].features.has_native_uuid_field}:
                with self.subTest(charset, has_uuid=has_uuid), database(charset, has_uuid):
                    self.check()

    def test_a_table_that_was_converted_is_settled(self):
        """People convert all tables of a database at once."""
        for charset in ("utf8mb3", "latin1"):
            with self.subTest(charset), database("utf8mb4", False):
                with connections[ALIAS].cursor() as cursor:
                    cursor.execute(f"ALTER TABLE {TABLE} CONVERT TO CHARACTER SET {charset}")
                store.enqueue(ALIAS, [self.new("mail") for _ in range(3)])
                ends: list[Any] = [outcome(claim) for claim in self.claim("mail")]
                self.assertEqual(3, len(store.settle(ALIAS, ends)))
