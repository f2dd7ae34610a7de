"""Wake-ups of runners by Redis.

Owns the channel and the two kinds of connections. Never keeps rows or results in Redis, and never
imports its client library before the first wake-up.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.checks import CheckMessage, Error

from ..waker import Waker
from .shown import shown

SCHEMES = ("redis", "rediss", "unix")
# Seconds of silence after which the server is asked whether it is there, and for its answer.
SILENCE = 10.0
ANSWER = 5.0


class Redis(Waker):
    """Wakes runners by PUBLISH on the channel ``<prefix>:<alias>``.

    `url` is ``redis://[[user]:[password]@]host[:port]``, ``rediss://…`` with TLS, or ``unix://…``.
    `timeout` limits, in seconds, connecting to one address and each answer; nothing limits how long
    the name of the host is looked up. Sites that share a server need a `prefix` of their own, or
    their runners wake each other. Use it for MySQL and MariaDB,
    and for PostgreSQL behind a pooler: elsewhere runners are woken without it.
    """

    package, extra = "redis", "redis"

    def __init__(self, url: str, *, prefix: str = "dbtasks", timeout: float = 0.1) -> None:
        self._url, self._prefix, self._timeout = url, prefix, timeout
        self._client: Any = None

    def __repr__(self) -> str:
        return f"Redis({shown(self._url)!r})"

    def publish(self, backend: str) -> None:
        """Wake the runners that listen; raise RedisError if the server does not answer in time."""
        if self._client is None:
            # Safe between threads, and in a child process. Two threads may make one each.
            self._client = self._connect(self._timeout)
        self._client.publish(self.channel(backend), "")

    @contextmanager
    def listen(self, backend: str) -> Iterator[Callable[[float], bool]]:
        """Subscribe to the channel, on a connection of its own, while the block is open."""
        with self._connect(ANSWER) as client, client.pubsub() as subscription:
            subscription.subscribe(self.channel(backend))
            if subscription.get_message(timeout=ANSWER) is None:
                raise TimeoutError("Redis does not answer.")
            yield Subscription(subscription).hears

    def channel(self, backend: str) -> str:
        """Return the name of the channel of that backend."""
        return f"{self._prefix}:{backend}"

    def _connect(self, timeout: float) -> Any:
        """Return a client that has not connected yet, and tries each thing once."""
        from redis import Redis as Client
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # The client's own retries took 3.8 s for a server that was away, with a timeout of 0.5 s.
        return Client.from_url(
            self._url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
        )

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield an error if the URL is not one of a Redis server."""
        if str(self._url).partition("://")[0] not in SCHEMES:
            yield Error(
                f"TASKS[{alias!r}]['OPTIONS']['wakeup']: the URL {self!r} does not begin with "
                "'redis://', 'rediss://' or 'unix://'.",
                hint="Write it as in Redis('redis://127.0.0.1:6379').",
                id="dbtasks.E024",
            )


class Subscription:
    """Hears what arrives on one subscription, and notices when the server is gone silently."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages
        self._heard_at, self._is_asked = time.monotonic(), False

    def hears(self, seconds: float) -> bool:
        """Wait at most so long; return whether a wake-up has come.

        Raise RedisError or TimeoutError if the server is away.
        """
        message = self._messages.get_message(timeout=seconds)
        if message is not None:
            self._heard_at, self._is_asked = time.monotonic(), False
            return bool(message["type"] == "message")
        silence = time.monotonic() - self._heard_at
        if silence > SILENCE + ANSWER:
            raise TimeoutError("Redis does not answer.")
        if silence > SILENCE and not self._is_asked:
            self._messages.ping()
            self._is_asked = True
        return False
