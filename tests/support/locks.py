"""Rows that another transaction holds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import SkipTest

from django.db import connections, transaction

from dbtasks import store
from dbtasks.models import TABLE

from .rows import DB, vendor


@contextmanager
def locked(id: Any) -> Iterator[None]:
    """Lock the row in a transaction of another thread while the block runs."""
    if vendor() == "sqlite":
        raise SkipTest("SQLite locks the file, not rows")
    held, done = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic(DB), connections[DB].cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM {TABLE} WHERE id = %s FOR UPDATE", [store.pk_text(DB, id)]
            )
            held.set()
            done.wait(60)
        connections.close_all()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        assert held.wait(10), "the row cannot be locked"
        yield
    finally:
        done.set()
        thread.join(30)
