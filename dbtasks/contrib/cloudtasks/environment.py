"""What a process on Google Cloud can learn about itself: project, region, URL.

Owns the environment variables and the metadata server, which is asked only where these variables
say that it exists. Never asks when it is imported, and never needs a client library.
"""

import http.client
import os
import threading
import time

from ...push import NotSent

# What Cloud Run's services and jobs and App Engine set.
VARIABLES = ("K_SERVICE", "CLOUD_RUN_JOB", "GAE_ENV")
# Seconds for one question to the metadata server, and between two that are not answered.
TIMEOUT = 1.0
PAUSE = 30.0
# Characters of one label of a host name.
MAX_LABEL = 63


class NotKnown(NotSent):
    """Raised for something that this process cannot find out; says which argument gives it."""


def is_on_google() -> bool:
    """Return whether the environment is that of Cloud Run or App Engine."""
    return any(os.environ.get(name) for name in VARIABLES)


def project() -> str:
    """Return the id of the project; raise NotKnown where nobody says it."""
    if found := os.environ.get("GOOGLE_CLOUD_PROJECT"):
        return found
    return _server.ask("project/project-id", "the project", "project")


def location() -> str:
    """Return the region in which this process runs; raise NotKnown where nobody says it."""
    try:
        return _region().rpartition("/")[2]
    except NotKnown:
        zone = _server.ask("instance/zone", "the location", "location")
        return zone.rpartition("/")[2].rpartition("-")[0]


def given_url() -> str | None:
    """Return the URL that the environment gives."""
    return os.environ.get("DBTASKS_URL") or None


def can_know_url() -> bool:
    """Return whether url() may find one. Asks nobody."""
    return bool(given_url() or os.environ.get("K_SERVICE"))


def url() -> str:
    """Return DBTASKS_URL, or the URL of this Cloud Run service; raise NotKnown without either."""
    if found := given_url():
        return found
    service = os.environ.get("K_SERVICE")
    if not service:
        raise NotKnown(_sentence("the URL of this site", "url"))
    # "projects/<number>/regions/<region>". The URL has the project's number, not its id.
    parts = _region().split("/")
    if len(parts) != 4 or len(label := f"{service}-{parts[1]}") > MAX_LABEL:
        raise NotKnown(_sentence("the URL of this service", "url"))
    return f"https://{label}.{parts[3]}.run.app"


def _region() -> str:
    return _server.ask("instance/region", "the location", "location")


def _sentence(what: str, argument: str) -> str:
    also = " or the environment variable DBTASKS_URL" if argument == "url" else ""
    return f"This process cannot find out {what}. Set CloudTasks({argument}=…){also}."


class MetadataServer:
    """The server that tells each process on Google Cloud about itself. Asks it everything once."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        self._failed_at = -PAUSE
        self._lock = threading.Lock()

    def ask(self, path: str, what: str, argument: str) -> str:
        """Return the value at that path; raise NotKnown, which names `what` and the argument.

        The server is not asked outside of Google Cloud, nor for a while after it did not answer.
        """
        with self._lock:
            if path in self._answers:
                return self._answers[path]
            if not is_on_google() or time.monotonic() - self._failed_at < PAUSE:
                raise NotKnown(_sentence(what, argument))
            try:
                value = _get(path)
            except (OSError, http.client.HTTPException) as error:
                self._failed_at = time.monotonic()
                raise NotKnown(
                    f"The metadata server does not answer ({type(error).__name__}). "
                    + _sentence(what, argument)
                ) from error
            if value is None:
                raise NotKnown(_sentence(what, argument))
            self._answers[path] = value
            return value


def _get(path: str) -> str | None:
    """Return the text at that path of the metadata server; None if it has none."""
    # The variable is that of Google's own libraries.
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
    try:
        headers = {"Metadata-Flavor": "Google"}
        connection.request("GET", f"/computeMetadata/v1/{path}", headers=headers)
        response = connection.getresponse()
        text = response.read(4096).decode("ascii", "replace").strip()
        # Somebody else may have that name or address.
        is_theirs = response.headers.get("Metadata-Flavor") == "Google"
        return text if is_theirs and response.status == 200 and text else None
    finally:
        connection.close()


def forget() -> None:
    """Ask anew for everything. A forked process does so, because a lock may have been held."""
    global _server
    _server = MetadataServer()


_server = MetadataServer()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget)
