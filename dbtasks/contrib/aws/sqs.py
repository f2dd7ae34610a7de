"""Hints by Amazon SQS.

Owns the push and its client. Never imports boto3 before the first hint, and never asks AWS
anything: `sqs:SendMessage` is the only permission that it needs.
"""

import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage, Error
from django.tasks import DEFAULT_TASK_QUEUE_NAME, task_backends

from ...push import Hint, NotSent, Push
from ..shown import HIDDEN, shown
from .events import Message, body_of

# The longest delay of one message, in seconds; SQS refuses more.
MAX_DELAY = 900
# What the name of a queue may consist of, apart from the ending of a FIFO queue.
NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
FIFO = ".fifo"
# sqs.eu-west-1.amazonaws.com, sqs-fips.us-east-1.amazonaws.com, vpce-….sqs.eu-west-1.vpce.….
REGION = re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z]{2}(?:-[a-z0-9]+)+)\.")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Seconds to connect and to wait for an answer. boto3's own are 60, and it would try again.
CONNECT_TIMEOUT, READ_TIMEOUT = 1.0, 2.0


class SQS(Push):
    """Sends hints as messages to queues of Amazon SQS, for a Lambda function.

    `url` is the URL of a standard queue; ``{queue}`` stands for the name of the task's queue. The
    region is part of the URL, or else boto3 finds it. `endpoint` is the address of another server
    than Amazon's, for tests. Credentials are those that boto3 finds. Rows that are due in more
    than 15 minutes get their hint from the sweep that promotes them.
    """

    longest = timedelta(seconds=MAX_DELAY)
    batch = 10
    package, extra = "boto3", "aws"

    def __init__(
        self,
        url: str,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        bulk: int | None = 50,
        late: float = 120.0,
    ) -> None:
        self.url, self.endpoint, self.bulk, self.late = url, endpoint, bulk, late
        found = REGION.search(urlsplit(url).hostname or "")
        self.region = region or (found[1] if found else None)
        self._forget(os.getpid())

    def __repr__(self) -> str:
        return f"SQS({shown(self.url)!r})"

    @property
    def needs_endpoints(self) -> bool:
        """Whether hints come back by HTTP: Lambda runs the handler instead."""
        return False

    def is_at_home(self) -> bool:
        """Return whether this process runs at AWS: in a Lambda function or a container of ECS."""
        return bool({"AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME"} & os.environ.keys())

    def send(self, hints: Sequence[Hint]) -> None:
        """Send the hints, by tens; raise NotSent if SQS refuses some, else what boto3 raises."""
        by_url: dict[str, list[Hint]] = {}
        for hint in hints:
            by_url.setdefault(self.url_of(hint.queue_name), []).append(hint)
        refused: list[str] = []
        for url, group in by_url.items():
            for few in batched(group, self.batch):
                refused += self._send(url, few)
        if refused:
            codes = ", ".join(sorted(set(refused)))
            raise NotSent(f"SQS refused {len(refused)} of {len(hints)} hints: {codes}.")

    def _send(self, url: str, hints: Sequence[Hint]) -> list[str]:
        """Send at most ten hints; return a code for each that was refused: boto3 raises nothing."""
        entries = [_entry(number, hint) for number, hint in enumerate(hints)]
        answer = self.client().send_message_batch(QueueUrl=url, Entries=entries)
        return [failed["Code"] for failed in answer.get("Failed", ())]

    def url_of(self, queue_name: str) -> str:
        """Return the URL of the queue of SQS for tasks of that queue."""
        return self.url.replace("{queue}", queue_name)

    def _forget(self, pid: int) -> None:
        """Begin without a client in that process."""
        # The lock too: in a child it may be locked for ever, by a thread that only the parent has.
        self._lock, self._client, self._pid = threading.Lock(), None, pid

    def client(self) -> Any:
        """Return this process's client, made at the first call. Can be called from any thread."""
        if (pid := os.getpid()) != self._pid:
            self._forget(pid)
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"total_max_attempts": 1},
        )
        # boto3.client() would share a session, which is not safe between threads.
        return Session().client(
            "sqs", region_name=self.region, endpoint_url=self.endpoint, config=config
        )

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is wrong with the URL and the names of queues."""
        where = f"TASKS[{alias!r}]['OPTIONS']['push']"
        for address in filter(None, (self.url, self.endpoint)):
            parts = urlsplit(address)
            if parts.scheme != "https" and parts.hostname not in LOOPBACK:
                yield Error(
                    f"{where}: {shown(address)!r} is not a valid address of SQS.",
                    hint="Write the queue's URL, such as "
                    "'https://sqs.eu-west-1.amazonaws.com/123456789012/{queue}'.",
                    id="dbtasks.E024",
                )
        yield from self._check_names(alias, where)

    def _check_names(self, alias: str, where: str) -> Iterator[CheckMessage]:
        for queue_name in sorted(task_backends[alias].queues) or [DEFAULT_TASK_QUEUE_NAME]:
            url = self.url_of(queue_name)
            name = url.rpartition("/")[2]
            # Part of a password, perhaps.
            said = HIDDEN if shown(url) == HIDDEN else name.partition("?")[0]
            if name.endswith(FIFO):
                yield Error(
                    f"{where}: {said!r} is a FIFO queue, in which messages have no delay.",
                    hint="Create a standard queue.",
                    id="dbtasks.E024",
                )
            elif not NAME.fullmatch(name):
                yield Error(
                    f"{where}: {said!r} is not a valid name of a queue of SQS.",
                    hint="Use at most 80 letters, digits, hyphens and underscores.",
                    id="dbtasks.E024",
                )


def _entry(number: int, hint: Hint) -> dict[str, Any]:
    body = body_of(Message(hint.backend, hint.id, hint.queue_name))
    return {"Id": str(number), "MessageBody": body, "DelaySeconds": _delay(hint)}


def _delay(hint: Hint) -> int:
    """Return the seconds until the row is due, as whole ones that SQS takes."""
    due = hint.run_after
    if due is None:
        return 0
    left = (due - datetime.now(UTC)).total_seconds()
    return max(0, min(MAX_DELAY, math.ceil(left)))
