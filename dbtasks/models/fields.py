"""Column types that hold the same value on every database.

Owns text that is compared byte by byte, JSON as text, and times as microseconds. Never queries
inside a value.
"""

import json
from datetime import UTC, datetime
from typing import Any

from django.db import models

from ..schedule.zones import EPOCH, MICROSECOND


class Unreadable(str):
    """The text of a column that should be JSON and is not. It is written back as it is."""

    __slots__ = ()


class Collated(models.Field):
    """Text that MySQL and MariaDB compare byte by byte, whatever the database's default is.

    So two names that differ in case stay two names, as on the other databases, and every table can
    hold every character.
    """

    mysql_collation = "utf8mb4_bin"

    def db_parameters(self, connection: Any) -> Any:
        found = super().db_parameters(connection)
        # MariaDB's own type for UUIDs has no collation.
        if connection.vendor == "mysql" and found["type"] != "uuid":
            found["collation"] = self.mysql_collation
        return found


class Name(Collated, models.CharField):
    """A name that a project or its code has chosen."""


class Code(Name):
    """One of a few words that dbtasks has chosen."""

    mysql_collation = "ascii_bin"


class Key(Collated, models.UUIDField):
    """A UUID. MySQL keeps it as text, which would take four times the space in another charset."""

    mysql_collation = "ascii_bin"


class JSONText(Collated, models.TextField):
    """JSON kept as plain text, NULL for None. Damaged text is read as Unreadable.

    A database's own JSON type would change values (jsonb turns 1e23 into an integer, MySQL reorders
    keys), parse each of them on the hot path, and accept other input on each database. No query
    looks inside arguments.
    """

    # For type checkers: any JSON.
    _pyi_private_get_type: Any
    _pyi_private_set_type: Any

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        try:
            return None if value is None else json.loads(value)
        except ValueError:
            # One damaged row must not keep a process from reading the others.
            return Unreadable(value)

    def get_prep_value(self, value: Any) -> str | None:
        if value is None or isinstance(value, Unreadable):
            return value
        return json.dumps(value, separators=(",", ":"))

    def value_to_string(self, obj: models.Model) -> str:
        return json.dumps(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


class Instant(models.Field):
    """An aware datetime in UTC, kept as microseconds since 1970.

    The value is the same on every database and with every time zone setting. In the hour that
    clocks show twice, two ticks an hour apart stay different.
    """

    _pyi_private_get_type: datetime
    _pyi_private_set_type: datetime | None

    def get_internal_type(self) -> str:
        return "BigIntegerField"

    def from_db_value(self, value: int | None, expression: Any, connection: Any) -> Any:
        return None if value is None else instant(value)

    def get_prep_value(self, value: Any) -> int | None:
        return None if value is None else microseconds(self.to_python(value))

    def to_python(self, value: Any) -> Any:
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    def value_to_string(self, obj: models.Model) -> str:
        value: Any = self.value_from_object(obj)
        return "" if value is None else str(value.isoformat())


def instant(value: int) -> datetime:
    """Return the aware datetime, in UTC, that is `value` microseconds after 1970 began."""
    return EPOCH + value * MICROSECOND


def microseconds(moment: datetime) -> int:
    """Return the microseconds from the start of 1970 to that moment."""
    return (moment.astimezone(UTC) - EPOCH) // MICROSECOND
