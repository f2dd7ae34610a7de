"""Tables of other packages, as Django models.

Owns how such a table is read although its package is not installed. Never changes it, and never
registers a model with Django.
"""

from typing import Any

from django.apps.registry import Apps
from django.db import models


def columns(connection: Any, table: str) -> set[str]:
    """Return the names of the table's columns; none if there is no such table."""
    introspection = connection.introspection
    with connection.cursor() as cursor:
        if table not in introspection.table_names(cursor):
            return set()
        return {column.name for column in introspection.get_table_description(cursor, table)}


def foreign_model(
    connection: Any, table: str, fields: dict[str, models.Field], key: models.Field | None = None
) -> Any:
    """Return a model of the table with its primary key `id` and those of the fields it has.

    The key is a UUID if none is given.
    """
    if key is None and connection.vendor == "mysql":
        # A server that was upgraded may keep UUIDs in a form that the ORM does not expect.
        key = models.CharField(max_length=36, primary_key=True)
    there = columns(connection, table)
    options = {"app_label": "foreign", "apps": Apps(), "db_table": table, "managed": False}
    names: dict[str, Any] = {"__module__": __name__, "Meta": type("Meta", (), options)}
    names |= {name: field for name, field in fields.items() if name in there}
    names["id"] = key or models.UUIDField(primary_key=True)
    return type("ForeignRow", (models.Model,), names)
