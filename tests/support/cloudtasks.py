"""A fake of Google Cloud Tasks on loopback: takes tasks by REST, and really calls their URLs.

What it refuses, the real service refuses: each body is parsed by Google's own types.
"""

import heapq
import http.client
import json
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .loopback import Answer, Loopback, Request

PATH = re.compile(r"/v2/(projects/([^/]+)/locations/([^/]+)/queues/([^/]+))/tasks")
# Recorded from the real service, by aertje/cloud-tasks-emulator.
NO_QUEUE = (
    "Queue does not exist. If you just created the queue, wait at least a minute for the queue to "
    "initialize."
)

# Headers of tasks that do not arrive.
MISSING: set[str] = set()


class Refused(Exception):
    """The service does not take this task: an HTTP status, and why."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status, self.name = status, name


class Delivery(NamedTuple):
    """One call of a URL: the answer's status, None if there was none within the deadline."""

    name: str
    retries: int
    status: int | None
    seconds: float
    body: bytes


class CloudTasksService:
    """The service. Use as a context manager; `endpoint` is what CloudTasks takes.

    Of the tasks it takes, it loses the share `lose`, delivers the share `double` twice, delivers
    each up to `delay` seconds late, and the share `reorder` up to a second after others. `seed`
    decides which. A delivery that is not answered with 2xx within the task's deadline (or
    `deadline` seconds, if given) is repeated after 0.05 s, then twice as long, up to `slowest`
    seconds, `attempts` times in all. `queues` are those that exist; None: all. `mint` makes the
    token of an email and an audience.

    `tasks` are those taken, as Google's Task; `deliveries` what became of them. `faults` are the
    sentences with which it refused something as malformed. `answers` holds statuses and messages
    that the next requests get instead. With `is_paused` nothing is delivered.
    """

    def __init__(
        self,
        *,
        lose: float = 0.0,
        double: float = 0.0,
        delay: float = 0.0,
        reorder: float = 0.0,
        seed: int = 0,
        deadline: float | None = None,
        slowest: float = 1.0,
        attempts: int = 100,
        concurrency: int = 8,
        queues: Collection[str] | None = None,
        mint: Callable[[str, str], str] | None = None,
    ) -> None:
        from google.cloud import tasks_v2

        self._types = tasks_v2
        self.lose, self.double, self.delay, self.reorder = lose, double, delay, reorder
        self.deadline, self.slowest, self.attempts = deadline, slowest, attempts
        self.queues, self.mint = queues, mint
        self.is_paused = False
        self.tasks: list[Any] = []
        self.lost: list[str] = []
        self.deliveries: list[Delivery] = []
        self.faults: list[str] = []
        self.answers: deque[tuple[int, str]] = deque()
        self._chance = random.Random(seed)
        self._number = count()
        self._names: set[str] = set()
        # (when by the monotonic clock, number, task, retries)
        self._waiting: list[tuple[float, int, Any, int]] = []
        self._busy = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._server = Loopback(self._answer)
        self.endpoint = self._server.origin
        self._threads = [threading.Thread(target=self._work) for _ in range(concurrency)]

    def __enter__(self) -> "CloudTasksService":
        self._server.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._server.__exit__()

    @property
    def requests(self) -> list[Request]:
        """What it received, in order."""
        return self._server.received

    @property
    def connections(self) -> int:
        """How many connections were opened to it."""
        return self._server.connections

    @property
    def is_hanging(self) -> bool:
        """Whether requests are accepted and never answered."""
        return self._server.is_hanging

    @is_hanging.setter
    def is_hanging(self, value: bool) -> None:
        self._server.is_hanging = value

    def is_idle(self) -> bool:
        """Tell whether every task was delivered, lost or given up."""
        with self._changed:
            return not self._waiting and not self._busy

    def resume(self) -> None:
        """End a pause."""
        with self._changed:
            self.is_paused = False
            self._changed.notify_all()

    def deliver(self, task: Any) -> None:
        """Deliver it now, once more, whatever its time is."""
        with self._changed:
            self._put(0, task, 0)

    # Taking tasks.

    def _answer(self, request: Request) -> Answer:
        try:
            if self.answers:
                status, message = self.answers.popleft()
                raise Refused(status, HTTPStatus(status).name, message)
            task = self._create(request)
        except Refused as refused:
            error = {"code": refused.status, "message": str(refused), "status": refused.name}
            if refused.status == 400 and refused.name == "INVALID_ARGUMENT":
                self.faults.append(str(refused))
            answer = _json(refused.status, {"error": error})
            if 300 <= refused.status < 400:
                answer = answer._replace(headers={**answer.headers, "Location": "/elsewhere"})
            return answer
        return _json(200, json.loads(self._types.Task.to_json(task)))

    def _create(self, request: Request) -> Any:
        parent, task = self._read(request)
        now = datetime.now(UTC)
        with self._changed:
            if task.name in self._names:
                raise Refused(409, "ALREADY_EXISTS", "Requested entity already exists")
            task.name = task.name or f"{parent}/tasks/{self._chance.getrandbits(60)}"
            self._names.add(task.name)
            self.tasks.append(task)
            ahead = (task.schedule_time - now).total_seconds() if task.schedule_time else 0.0
            for _ in range(self._copies(task)):
                late = self._chance.uniform(0, self.delay)
                if self._chance.random() < self.reorder:
                    late += self._chance.random()
                self._put(max(0.0, ahead) + late, task, 0)
        return task

    def _copies(self, task: Any) -> int:
        luck = self._chance.random()
        if luck < self.lose:
            self.lost.append(task.name)
            return 0
        return 2 if luck < self.lose + self.double else 1

    def _read(self, request: Request) -> tuple[str, Any]:
        """Return the queue and the task of a request; raise Refused as the real service does."""
        matched = PATH.fullmatch(request.path)
        if request.method != "POST" or matched is None:
            raise Refused(404, "NOT_FOUND", f"{request.method} {request.path} is not known.")
        parent, queue = matched[1], matched[4]
        if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", queue):
            raise _malformed(f"Queue ID {queue!r} is not valid.")
        if self.queues is not None and queue not in self.queues:
            raise Refused(404, "NOT_FOUND", NO_QUEUE)
        try:
            body = json.loads(request.body)
            task = self._types.Task.from_json(json.dumps(body.pop("task")))
        except Exception as error:
            raise _malformed(f"{type(error).__name__}: {error}") from error
        if body:
            raise _malformed(f"Unknown fields: {', '.join(body)}.")
        _judge(parent, task)
        return parent, task

    # Delivering them.

    def _put(self, wait: float, task: Any, retries: int) -> None:
        """Deliver it after so many seconds. The lock must be held."""
        heapq.heappush(self._waiting, (time.monotonic() + wait, next(self._number), task, retries))
        self._changed.notify_all()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            task, retries = found
            try:
                self._deliver(task, retries)
            finally:
                with self._changed:
                    self._busy -= 1

    def _next(self) -> tuple[Any, int] | None:
        """Wait for a task that is to be delivered, and take it; None once the service ends."""
        with self._changed:
            while not self._is_closed:
                wait = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if self.is_paused:
                    wait = None
                elif wait is not None and wait <= 0:
                    self._busy += 1
                    return heapq.heappop(self._waiting)[2:]
                self._changed.wait(wait)
        return None

    def _deliver(self, task: Any, retries: int) -> None:
        started = time.monotonic()
        try:
            status, body = self._call(task, retries)
        except (OSError, http.client.HTTPException):
            status, body = None, b""
        seconds = time.monotonic() - started
        with self._changed:
            self.deliveries.append(Delivery(task.name, retries, status, seconds, body))
            is_done = status is not None and 200 <= status < 300
            if not is_done and retries + 1 < self.attempts and not self._is_closed:
                self._put(min(self.slowest, 0.05 * 2 ** min(retries, 16)), task, retries + 1)

    def _call(self, task: Any, retries: int) -> tuple[int, bytes]:
        target = urlsplit(task.http_request.url)
        _, _, queue, _, name = task.name.rsplit("/", 4)
        headers = {
            "User-Agent": "Google-Cloud-Tasks",
            "Content-Type": "application/octet-stream",
            **{k: v for k, v in task.http_request.headers.items() if k not in MISSING},
            "X-CloudTasks-QueueName": queue,
            "X-CloudTasks-TaskName": name,
            "X-CloudTasks-TaskRetryCount": str(retries),
            "X-CloudTasks-TaskExecutionCount": "0",
        }
        if email := task.http_request.oidc_token.service_account_email:
            if self.mint is None:
                raise OSError("A token is asked for, and nobody makes one.")
            token = self.mint(email, task.http_request.oidc_token.audience or target.geturl())
            headers["Authorization"] = f"Bearer {token}"
        deadline = self.deadline or task.dispatch_deadline.total_seconds() or 600.0
        assert target.hostname is not None
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=deadline)
        try:
            path = target.path + (f"?{target.query}" if target.query else "")
            connection.request("POST", path, body=b"", headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _judge(parent: str, task: Any) -> None:
    """Raise Refused for what Google's types allow and the real service does not."""
    pattern = rf"{re.escape(parent)}/tasks/[A-Za-z0-9_-]{{1,500}}"
    if task.name and not re.fullmatch(pattern, task.name):
        raise _malformed(f"Task name {task.name!r} is not valid.")
    if not re.match(r"https?://", task.http_request.url):
        raise _malformed(f"HttpRequest.url {task.http_request.url!r} is not valid.")
    if "dispatch_deadline" in task:
        seconds = task.dispatch_deadline.total_seconds()
        if not 15 <= seconds <= 1800:
            raise _malformed("Task.dispatchDeadline must be between [15s, 30m].")
    if task.schedule_time and task.schedule_time - datetime.now(UTC) > timedelta(days=30):
        raise _malformed("The Task.scheduleTime is too far in the future.")


def _malformed(message: str) -> Refused:
    return Refused(400, "INVALID_ARGUMENT", message)


def _json(status: int, value: Any) -> Answer:
    body = json.dumps(value).encode()
    return Answer(status, body, {"Content-Type": "application/json; charset=UTF-8"})
