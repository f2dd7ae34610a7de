"""Celery on Redis, without a result backend.

Owns its adapter. Never tunes the default.
"""

import uuid
from functools import cached_property
from typing import Any

from . import body
from .peer import URL, Setting
from .redis import RedisPeer

if URL:
    from celery import Celery

    app = Celery("peers", broker=URL)

    @app.task
    def noop(number: int = 0) -> None:
        """Do nothing."""
        body.noop(number)


class CeleryPeer(RedisPeer):
    """Messages, acknowledged when a pool has taken them."""

    name = "celery"
    requirements = ("celery[redis]==5.7.0", "redis==8.1.0")
    queue = "celery"
    keys = ("celery*", "_kombu.*", "unacked*")
    default = Setting(
        ("celery", "-A", "peers.celery", "worker", "--loglevel=INFO"),
        "as documented: prefork, as many processes as processors",
    )
    best = Setting(
        (
            *("celery", "-A", "peers.celery", "worker", "--loglevel=WARNING", "--pool=solo"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        "2 workers without a pool, which costs more than a no-op, and without talk between workers",
        processes=2,
    )

    def prepare(self) -> None:
        self.clear()

    def enqueue(self, number: int = 0) -> None:
        noop.delay(number)

    @cached_property
    def template(self) -> tuple[str, str, str]:
        """Return a message that Celery wrote, its id, and its delivery tag."""
        import json

        self.enqueue()
        text = self.client.lpop(self.queue).decode()
        message = json.loads(text)
        return text, message["headers"]["id"], message["properties"]["delivery_tag"]

    def message(self) -> bytes:
        text, task_id, tag = self.template
        fresh = text.replace(task_id, str(uuid.uuid4())).replace(tag, str(uuid.uuid4()))
        return fresh.encode()

    def count(self, pipe: Any) -> None:
        pipe.llen(self.queue)
        pipe.hlen("unacked")


PEER = CeleryPeer()
