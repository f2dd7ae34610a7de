"""What all transitions share: the dialect, a unit of work, the database's clock, batches.

Owns when a transition runs again: after a deadlock or a lock timeout, and only outside of a
caller's transaction. Never changes a row itself.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, IntegrityError, OperationalError, connections
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ..models import ScheduledTask
from .dialects import mysql, postgresql, sqlite
from .rows import NewTask, Outcome

# The supported databases, by Django's names.
SUPPORTED = ("postgresql", "mysql", "sqlite")
DIALECTS = {"postgresql": postgresql, "mysql": mysql, "sqlite": sqlite}
# Rows that one statement may change: enough to be cheap per row, few enough to hold no lock for
# long.
BATCH = 500
# Characters of text that one statement may carry: max_allowed_packet is 16 MiB by default on
# MariaDB.
BATCH_CHARS = 4_000_000
# How often a unit of work is tried when the database rolls it back to break a deadlock.
TRIES = 20
# Seconds after which it is not tried again: a wait for a lock may take as long as that by itself.
TRY_SECONDS = 10.0


def dialect(connection: Any) -> Any:
    """Return the module with the SQL of the connection's database.

    Raise ImproperlyConfigured if dbtasks cannot keep its queue there.
    """
    try:
        return DIALECTS[connection.vendor]
    except KeyError:
        raise ImproperlyConfigured(
            f"dbtasks keeps its queue in PostgreSQL, MySQL, MariaDB or SQLite, not in "
            f"{connection.display_name}. Set OPTIONS['database'] to the alias of one of them."
        ) from None


def unit_of_work[T](db: str, work: Callable[[Any, Any], T]) -> T:
    """Return what `work` returns; call it again if the database rolled it back.

    Inside a caller's transaction it is called once, because the database has rolled back all of
    that transaction.
    """
    connection = connections[db]
    sql = dialect(connection)
    end = time.monotonic() + TRY_SECONDS
    for tried in range(TRIES):
        try:
            return work(connection, sql)
        except OperationalError as error:
            is_over = tried == TRIES - 1 or time.monotonic() > end
            if connection.in_atomic_block or is_over or not sql.is_transient(error):
                raise
            # Up to 5 ms, then longer. The other transaction needs about that long to commit.
            time.sleep(random.random() * 0.005 * 2 ** min(tried, 6))
    raise AssertionError("unreachable")


class Refused(Exception):
    """The database refuses the data of a statement, however often it is sent."""


@contextmanager
def refusals(db: str) -> Iterator[None]:
    """Raise Refused if the block fails because of its data; let any other error pass.

    Every other error is the database's: it is a standby, lacks a table, has revoked a right or is
    away.
    """
    try:
        yield
    except (DataError, IntegrityError, TypeError, ValueError) as error:
        raise Refused(str(error)) from error
    except OperationalError as error:
        if error.args and error.args[0] in getattr(dialect(connections[db]), "REFUSALS", ()):
            raise Refused(str(error)) from error
        raise


def adapted[T: (NewTask, Outcome)](connection: Any, rows: Sequence[T]) -> Sequence[T]:
    """Return the rows with their datetimes as the driver takes them."""
    if connection.vendor == "postgresql":
        return rows
    adapt = connection.ops.adapt_datetimefield_value
    names = [name for name in rows[0]._fields if name.endswith(("_at", "_after"))] if rows else []
    return [row._replace(**{name: adapt(getattr(row, name)) for name in names}) for row in rows]


def batches[T](rows: Sequence[T], chars: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the rows in batches that one statement can carry, limited in rows and characters."""
    batch: list[T] = []
    size = 0
    for row in rows:
        length = chars(row)
        if batch and (len(batch) == BATCH or size + length > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch


def now(db: str) -> datetime:
    """Return the database's time."""
    connection = connections[db]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect(connection).now(connection)}")
        at: Any = to_datetime(db, cursor.fetchone()[0])
    return at  # type: ignore[no-any-return]


def to_datetime(db: str, value: Any) -> datetime | None:
    """Return a driver's datetime as the ORM would."""
    at = parse_datetime(value) if isinstance(value, str) else value
    if at is None or settings.USE_TZ is timezone.is_aware(at):
        return at
    if settings.USE_TZ:
        return at.replace(tzinfo=connections[db].timezone)
    return timezone.make_naive(at, timezone.get_default_timezone())


def pk_text(db: str, id: UUID) -> Any:
    """Return the id as text in the form of that database, which claims hold."""
    return str(ScheduledTask._meta.pk.get_db_prep_value(id, connections[db]))
