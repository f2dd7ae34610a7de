"""Hints by Google Cloud Tasks: one REST call for each, without Google's generated client.

Owns what a task of Cloud Tasks looks like, and what each answer of the service means. Never makes a
queue, and asks for nothing before the first hint.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.tasks import DEFAULT_TASK_QUEUE_NAME

from ...base import registry
from ...push import HEADER, Hint, NotSent, Push, sign
from ..http.journal import Journal
from ..http.mount import target
from ..http.origin import check_origin, no_origin
from ..shown import shown
from . import environment

if TYPE_CHECKING:
    from .google import Sessions

logger = logging.getLogger("dbtasks.push")

ENDPOINT = "https://cloudtasks.googleapis.com"
# Seconds that the service can wait for an answer.
MIN_DEADLINE, MAX_DEADLINE = 15, 1800
# The service holds a task for 30 days at most.
LONGEST = timedelta(days=29, hours=23)
QUEUE_NAME = re.compile(r"[A-Za-z0-9-]{1,100}")
ALREADY_EXISTS = 409
# Characters of Google's own words in the log.
MAX_MESSAGE = 300


class CloudTasks(Push):
    """Sends hints by Google Cloud Tasks, which calls this site back with each of them.

    What is not given is found on Cloud Run, and partly on App Engine, at the first hint:

    - `project`, `location`: where the queue of Cloud Tasks is.
    - `queue`: its name, in which ``{queue}`` stands for the name of Django's queue; or a dict from
      Django's names to those of Cloud Tasks.
    - `url`: the address of this site, or of the mount of its endpoints if it has a path.
    - `service_account`: an email; hints carry a token of this account, which private services need.
      `audience` is who the token is for, by default the origin of `url`.
    - `deadline`: seconds that the service waits until a task has ended, from 15 to 1800.
    - `retry`: how the service repeats deliveries, instead of as its queue says, such as
      ``{"maxAttempts": 5}``.
    - `timeout`: seconds for one call. `late` and `bulk`: see Push.
    - `endpoint`: the address of the service, for tests. `credentials`: an object of google-auth,
      by default those that it finds by itself.
    """

    longest = LONGEST
    package = "google.auth"
    extra = "cloudtasks"

    def __init__(
        self,
        *,
        project: str | None = None,
        location: str | None = None,
        queue: str | Mapping[str, str] = "{queue}",
        url: str | None = None,
        service_account: str | None = None,
        audience: str | None = None,
        deadline: float = 600,
        retry: Mapping[str, Any] | None = None,
        timeout: float = 2.0,
        late: float = 120.0,
        bulk: int | None = 50,
        endpoint: str = ENDPOINT,
        credentials: Any = None,
    ) -> None:
        self.project, self.location, self.queue, self.url = project, location, queue, url
        self.service_account, self.audience = service_account, audience
        self.deadline, self.retry, self.timeout = deadline, retry, timeout
        self.late, self.bulk, self.endpoint = late, bulk, endpoint
        self._credentials = credentials
        self._sessions: Sessions | None = None
        self._journal = Journal()

    def __repr__(self) -> str:
        url = None if self.url is None else shown(self.url)
        return f"CloudTasks(queue={self.queue!r}, url={url!r})"

    def is_at_home(self) -> bool:
        """Return whether this process is on Cloud Run or App Engine, and its URL is known."""
        return environment.is_on_google() and self.can_know_url()

    @property
    def needs_endpoints(self) -> bool:
        """Whether its hints come to endpoints() in the URLs of this project."""
        return not urlsplit(self.url or environment.given_url() or "").path.strip("/")

    def can_know_url(self) -> bool:
        """Return whether the URL that the service calls is given, or may be found."""
        return bool(self.url) or environment.can_know_url()

    def send(self, hints: Sequence[Hint]) -> None:
        """Make a task of each hint; raise NotSent if the service does not take it."""
        for hint in hints:
            place = self._place(hint.queue_name)
            status, message = self._post(f"{self.endpoint}/v2/{place.parent}/tasks", hint, place)
            if status != ALREADY_EXISTS and not 200 <= status < 300:
                advice = self._advice(status, place)
                if advice is not None and self._journal.is_new(str(status), place.queue):
                    logger.error("%s Google says: %r", advice, message[:MAX_MESSAGE])
                raise NotSent(f"Cloud Tasks answered {status}")

    def _place(self, queue_name: str) -> "Place":
        return Place(
            self.project or environment.project(),
            self.location or environment.location(),
            self.name_of(queue_name),
        )

    def name_of(self, queue_name: str) -> str:
        """Return the name in Cloud Tasks of Django's queue; raise NotSent if it has none."""
        if isinstance(self.queue, str):
            name = self.queue.replace("{queue}", queue_name)
        else:
            name = self.queue.get(queue_name, "")
        if not QUEUE_NAME.fullmatch(name):
            raise NotSent(
                f"Cloud Tasks cannot have a queue {name!r}, which stands for {queue_name!r}. "
                "Names consist of up to 100 letters, digits and hyphens"
            )
        return name

    def _post(self, url: str, hint: Hint, place: "Place") -> tuple[int, str]:
        body = {"task": self._task(hint, place)}
        # Imported here, because settings import this module where google-auth may be missing.
        from .google import Sessions

        if self._sessions is None:
            self._sessions = Sessions(self._credentials, self.timeout)
        with self._sessions.borrow() as session:
            return session.post(url, body)

    def _task(self, hint: Hint, place: "Place") -> dict[str, Any]:
        site = self.url or environment.url()
        try:
            url = target(hint, site)
        except ImproperlyConfigured as error:
            raise NotSent(str(error)) from error
        request: dict[str, Any] = {
            "httpMethod": "POST",
            "url": url,
            "headers": {HEADER: sign(hint.backend, hint.id)},
        }
        if self.service_account:
            request["oidcToken"] = {
                "serviceAccountEmail": self.service_account,
                "audience": self.audience or _origin(site),
            }
        task = {"httpRequest": request, "dispatchDeadline": f"{self.deadline:g}s"}
        if hint.run_after is not None:
            at = hint.run_after.astimezone(UTC)
            task["scheduleTime"] = at.isoformat().replace("+00:00", "Z")
        if hint.again and hint.id is not None:
            # Two sweeps that tell of the same row make one task. Other hints have no name: tasks
            # with a name take longer to make, and names are blocked for hours. The random half of
            # the id comes first, because names that begin with the time slow a queue down.
            half = hint.id[18:].replace("-", "")
            task["name"] = f"{place.parent}/tasks/{half}-{hint.attempt}-{hint.again}"
        if self.retry is not None:
            task["retryConfig"] = dict(self.retry)
        return task

    def _advice(self, status: int, place: "Place") -> str | None:
        """Return what a person has to do about that answer; None if time heals it."""
        if status == 404:
            return (
                f"Cloud Tasks has no queue {place.queue!r} in {place.location}. Run: gcloud tasks "
                f"queues create {place.queue} --location {place.location} --project "
                f"{place.project}. A new queue takes a minute."
            )
        if status in (401, 403):
            actor = self.service_account or "the service account of the hints, if you set one"
            return (
                "Cloud Tasks does not allow this process to make tasks. Its service account needs "
                f"the role roles/cloudtasks.enqueuer in the project {place.project}, and "
                f"iam.serviceAccounts.actAs, as in roles/iam.serviceAccountUser, on {actor}."
            )
        if status == 400:
            return "Cloud Tasks refuses a hint. Check the arguments of CloudTasks()."
        return None

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is wrong with the deadline, the URL and the names of queues."""
        deadline: Any = self.deadline
        is_number = isinstance(deadline, int | float) and not isinstance(deadline, bool)
        if not is_number or not MIN_DEADLINE <= deadline <= MAX_DEADLINE:
            yield Error(
                f"The push of TASKS[{alias!r}] has the deadline {deadline!r}. Cloud Tasks waits "
                f"for {MIN_DEADLINE} to {MAX_DEADLINE} seconds.",
                hint="Set it to the longest time that a request to this site may take.",
                id="dbtasks.E024",
            )
        if (url := self.url or environment.given_url()) is not None:
            yield from check_origin(alias, url)
        yield from self._check_queues(alias)

    def check_deployment(self, alias: str) -> Iterator[CheckMessage]:
        """Yield a warning if the address of this site cannot be known. Asks nobody."""
        if not self.can_know_url():
            yield no_origin(alias, "CloudTasks(url=…)")

    def _check_queues(self, alias: str) -> Iterator[CheckMessage]:
        for queue_name in _queues(alias):
            try:
                self.name_of(queue_name)
            except NotSent as error:
                yield Error(
                    f"The push of TASKS[{alias!r}]: {error}.",
                    hint="Rename the queue, or map its name: CloudTasks(queue={"
                    f"{queue_name!r}: 'a-valid-name'}}).",
                    id="dbtasks.E024",
                )


class Place(NamedTuple):
    """A queue of Cloud Tasks."""

    project: str
    location: str
    queue: str

    @property
    def parent(self) -> str:
        """What its tasks' names begin with, and its path in the API."""
        project, location = quote(self.project, safe=":"), quote(self.location, safe="")
        return f"projects/{project}/locations/{location}/queues/{self.queue}"


def _queues(alias: str) -> Iterable[str]:
    """Return Django's queues of that backend: those it allows, or else those of its tasks."""
    allowed = settings.TASKS[alias].get("QUEUES", [DEFAULT_TASK_QUEUE_NAME])
    if allowed:
        return list(allowed)
    tasks = [task for task in registry.registered() if task.backend == alias]
    return sorted({DEFAULT_TASK_QUEUE_NAME, *(task.queue_name for task in tasks)})


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
