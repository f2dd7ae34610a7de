"""A process that enqueues, cancels, retries and purges from many threads at once."""

import json
import random
import sys
import threading
from datetime import timedelta
from typing import Any

from django.db import connections
from django.tasks import default_task_backend

from dbtasks import store
from dbtasks.models import ScheduledTask

from .storm import SEED
from .tasks import sometimes

# Calls that one thread enqueues at a time.
BATCH = 20


def churn(number: int, threads: int, count: int) -> None:
    """Enqueue so many tasks from so many threads, disturbing others; print what was raised."""
    raised: list[str] = []

    def work(thread: int) -> None:
        chance = random.Random(f"{SEED} {number} {thread}")
        try:
            for first in range(0, count // threads, BATCH):
                calls = [((first + n,), {}) for n in range(BATCH)]
                results = sometimes.enqueue_many(calls)
                disturb(chance, [result.id for result in results])
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}")
        finally:
            connections.close_all()

    crew = [threading.Thread(target=work, args=[n]) for n in range(threads)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    json.dump(raised, sys.stdout)


def disturb(chance: random.Random, ids: list[str]) -> None:
    """Do to some rows what people do."""
    backend: Any = default_task_backend
    for id in chance.sample(ids, 2):
        backend.cancel(id)
    if chance.random() < 0.3:
        failed = ScheduledTask.objects.filter(status="FAILED", cancel_requested=False)
        for pk in failed.order_by("id").values_list("pk", flat=True)[: chance.randrange(5)]:
            backend.retry(str(pk))
    if chance.random() < 0.05:
        for _ in store.purge_older("default", timedelta(seconds=1)):
            pass
