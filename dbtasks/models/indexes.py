"""Indexes on some of the rows.

Owns what differs between databases in the schema. PostgreSQL and SQLite index only the rows that a
query needs. MySQL and MariaDB cannot, so there the selecting columns come first in the index. Never
decides which queries there are: the models do.
"""

from typing import Any

from django.db import models


class PartialIndex(models.Index):
    """An index on `fields` of the rows that match `where`.

    A database without partial indexes gets an index on `otherwise` of all rows instead.
    """

    def __init__(self, *, where: models.Q, otherwise: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.otherwise = where, otherwise

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, kwargs | {"where": self.where, "otherwise": self.otherwise}

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            index = models.Index(fields=self.fields, name=self.name, condition=self.where)
        else:
            index = models.Index(fields=self.otherwise, name=self.name)
        return index.create_sql(model, schema_editor, using, **kwargs)


class UniqueWhereSet(models.UniqueConstraint):
    """A unique constraint that costs nothing for rows without a value, if the database can do that.

    NULLs are distinct on every database, so the constraint forbids the same everywhere.
    """

    def _for(self, schema_editor: Any) -> models.UniqueConstraint:
        partial = schema_editor.connection.features.supports_partial_indexes
        where = models.Q(**{f"{name}__isnull": False for name in self.fields})
        return models.UniqueConstraint(
            fields=self.fields, name=self.name, condition=where if partial else None
        )

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).constraint_sql(model, schema_editor)

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).create_sql(model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).remove_sql(model, schema_editor)
