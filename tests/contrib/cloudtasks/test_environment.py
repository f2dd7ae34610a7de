"""What a process finds out about itself on Google Cloud, and what it never asks."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from django.test import SimpleTestCase, tag

from dbtasks.contrib.cloudtasks import CloudTasks, environment
from dbtasks.contrib.cloudtasks.environment import NotKnown
from tests.support.cloudtasks import CloudTasksService
from tests.support.loopback import Answer, Loopback, Request
from tests.support.tokens import needs_google

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "instance/service-accounts/default/token"
VALUES = {
    "project/project-id": "shop",
    "instance/region": "projects/1234567890/regions/europe-west1",
    "instance/zone": "projects/1234567890/zones/europe-west4-b",
}


class MetadataTestCase(SimpleTestCase):
    """A metadata server, and an environment with nothing of Google's but its address."""

    def setUp(self) -> None:
        self.values = dict(VALUES)
        self.server = self.enterContext(Loopback(self.answer))
        self.environ("GCE_METADATA_HOST", self.server.origin.removeprefix("http://"))
        environment.forget()
        self.addCleanup(environment.forget)

    def environ(self, *host: str, **variables: str) -> None:
        """Set these variables, and no other of Google's."""
        names = (*environment.VARIABLES, "DBTASKS_URL", "GOOGLE_CLOUD_PROJECT")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        kept |= dict([host] if host else []) | variables
        self.enterContext(mock.patch.dict(os.environ, kept, clear=True))

    def answer(self, request: Request) -> Answer:
        flavor = {"Metadata-Flavor": "Google"}
        value = self.values.get(request.path.removeprefix("/computeMetadata/v1/"))
        if value is None or request.headers.get("metadata-flavor") != "Google":
            return Answer(404, b"", flavor)
        return Answer(200, value.encode(), flavor)

    def asked(self) -> list[str]:
        return [request.path.rpartition("/v1/")[2] for request in self.server.received]


class MetadataTests(MetadataTestCase):
    """What it is asked, and when."""

    def test_cloud_run(self):
        """The URL has the number of the project, and the region of the service."""
        self.environ(K_SERVICE="front")

        self.assertEqual("shop", environment.project())
        self.assertEqual("europe-west1", environment.location())
        self.assertEqual("https://front-1234567890.europe-west1.run.app", environment.url())

    def test_it_is_asked_once(self):
        """By all threads together."""
        self.environ(K_SERVICE="front")
        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(environment.project)
                pool.submit(environment.location)
                pool.submit(environment.url)

        self.assertEqual({"project/project-id", "instance/region"}, set(self.asked()))
        self.assertEqual(2, len(self.asked()))

    def test_app_engine(self):
        """It has a zone, and says the project itself; its other variables are never parsed."""
        del self.values["instance/region"]
        self.environ(GAE_ENV="standard", GAE_APPLICATION="s~hop", GOOGLE_CLOUD_PROJECT="hop")

        self.assertEqual("hop", environment.project())
        self.assertEqual("europe-west4", environment.location())
        self.assertRaises(NotKnown, environment.url)
        environment.forget()
        del os.environ["GOOGLE_CLOUD_PROJECT"]
        self.assertEqual("shop", environment.project())

    def test_a_job(self):
        """It has a project and a region, but no URL."""
        self.environ(CLOUD_RUN_JOB="nightly")

        self.assertEqual("shop", environment.project())
        self.assertRaisesMessage(NotKnown, "Set CloudTasks(url=…)", environment.url)
        self.assertRaisesMessage(NotKnown, "DBTASKS_URL", environment.url)

    def test_given_values_win(self):
        """Nobody is asked then."""
        self.environ(
            K_SERVICE="front", DBTASKS_URL="https://a.example", GOOGLE_CLOUD_PROJECT="given"
        )

        self.assertEqual("given", environment.project())
        self.assertEqual("https://a.example", environment.url())
        self.assertEqual([], self.asked())

    def test_outside_of_google_cloud(self):
        """Nobody is asked; the sentence names the argument."""
        self.environ()

        self.assertRaisesMessage(NotKnown, "Set CloudTasks(project=…)", environment.project)
        self.assertRaisesMessage(NotKnown, "Set CloudTasks(location=…)", environment.location)
        self.assertRaisesMessage(NotKnown, "Set CloudTasks(url=…)", environment.url)
        self.assertEqual([], self.asked())

    def test_a_service_whose_url_is_too_long(self):
        """A label of a host name has 63 characters; Cloud Run shortens it in its own way."""
        self.environ(K_SERVICE="a" * 53)

        self.assertRaises(NotKnown, environment.url)

    def test_no_metadata_server(self):
        """As on Knative, which has K_SERVICE too: one try, then none for a while."""
        self.environ(K_SERVICE="front", GCE_METADATA_HOST="127.0.0.1:1")

        self.assertRaisesMessage(NotKnown, "does not answer", environment.project)
        with mock.patch.object(environment, "_get") as get:
            self.assertRaises(NotKnown, environment.location)
            get.assert_not_called()
        later = time.monotonic() + 31
        os.environ["GCE_METADATA_HOST"] = self.server.origin.removeprefix("http://")
        with mock.patch.object(environment, "time", mock.Mock(monotonic=lambda: later)):
            self.assertEqual("shop", environment.project())

    def test_a_metadata_server_that_hangs(self):
        """A second, then the sentence."""
        self.environ(K_SERVICE="front")
        self.server.is_hanging = True
        started = time.monotonic()

        self.assertRaises(NotKnown, environment.project)
        self.assertLess(time.monotonic() - started, 2)

    def test_somebody_else_with_that_name(self):
        """Its answer is not Google's."""
        self.environ(K_SERVICE="front")
        self.server.answer = lambda request: Answer(200, b"<html>Welcome</html>")

        self.assertRaises(NotKnown, environment.project)

    def test_making_and_checking_ask_nobody(self):
        """Nor do is_at_home() and repr()."""
        self.environ(K_SERVICE="front")
        push = CloudTasks()
        list(push.check("default"))
        push.is_at_home()
        repr(push)

        self.assertEqual([], self.asked())


# Run by another process, in which google-auth and its like cannot be imported.
WITHOUT = """
    import sys

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"google", "requests", "grpc", "boto3", "redis"}:
                return None
            return self.finder.find_spec(name, path, target)

    sys.meta_path[:] = map(Without, sys.meta_path)
    from dbtasks.contrib.cloudtasks import OIDC, CloudTasks
    from django.conf import settings

    settings.configure(
        SECRET_KEY="x" * 50,
        ALLOWED_HOSTS=["127.0.0.1"],
        INSTALLED_APPS=["dbtasks"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:",
                               "OPTIONS": {"transaction_mode": "IMMEDIATE"}}},
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend",
                           "OPTIONS": {"push": CloudTasks()}}},
    )
    oidc = OIDC("https://shop.example", "a@b.example")
    import django
    django.setup()
    from django.core.checks import run_checks
    found = [message.id for message in [*run_checks(), *oidc.check()]]
    assert found.count("dbtasks.E022") == 2, found
"""
# Run by another process with production settings: nothing of Google's is imported or asked.
IDLE = """
    import sys, socket

    def refuse(*args):
        raise AssertionError(f"connects to {args}")

    from dbtasks.contrib.cloudtasks import OIDC, CloudTasks
    from django.conf import settings

    settings.configure(
        SECRET_KEY="x" * 50,
        ALLOWED_HOSTS=["127.0.0.1"],
        INSTALLED_APPS=["dbtasks"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:",
                               "OPTIONS": {"transaction_mode": "IMMEDIATE"}}},
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend",
                           "OPTIONS": {"push": CloudTasks()}}},
    )
    OIDC("https://shop.example", "a@b.example")
    import django
    socket.socket.connect = refuse
    socket.getaddrinfo = refuse
    django.setup()
    from django.core.checks import run_checks
    ids = {message.id for message in run_checks(include_deployment_checks=True)}
    expected = {"dbtasks.E023", *(sys.argv[1:])}
    assert {id for id in ids if id.startswith("dbtasks")} == expected, ids
    heavy = {"google.auth", "requests", "grpc", "boto3", "redis"} & set(sys.modules)
    assert not heavy, heavy
"""
# Run by another process, as an instance of Cloud Run: it sends a hint, and says what came of it.
INSTANCE = """
    import sys, time
    from types import ModuleType
    from django.conf import settings
    from django.urls import path
    from dbtasks.contrib.cloudtasks import CloudTasks
    from dbtasks.contrib.http import Bearer, endpoints

    urls = sys.modules["urls"] = ModuleType("urls")
    settings.configure(
        SECRET_KEY="x" * 50,
        ROOT_URLCONF="urls",
        INSTALLED_APPS=["dbtasks"],
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend",
                           "OPTIONS": {"push": CloudTasks(endpoint=sys.argv[1])}}},
    )
    import django
    django.setup()
    urls.urlpatterns = [path("tasks/", endpoints(auth=[Bearer("x" * 40)]))]
    import google.auth, requests  # its time is not counted
    from dbtasks.push import Hint, NotSent
    from dbtasks.wakeup.hints import push_of
    push = push_of("default")
    assert push.is_at_home()
    started = time.monotonic()
    try:
        push.send([Hint("019a8b1e-7c00-7abc-9def-0123456789ab", "default", "default")])
    except NotSent as error:
        print(error)
    else:
        print("sent")
    assert time.monotonic() - started < 2.8, time.monotonic() - started
"""


@needs_google
@tag("processes")
class CloudRunTests(MetadataTestCase):
    """A process with nothing but the environment of a Cloud Run service."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.enterContext(CloudTasksService(concurrency=0))
        account = {"email": "runtime@shop.iam.gserviceaccount.com", "scopes": [], "aliases": []}
        path = "instance/service-accounts/default"
        self.values |= {
            f"{path}/?recursive=true": json.dumps(account),
            f"{path}/email": account["email"],
            TOKEN: json.dumps({"access_token": "token-1", "expires_in": 3600}),
            "universe/universe-domain": "googleapis.com",
        }

    def answer(self, request: Request) -> Answer:
        if request.path == "/":  # asked whether it is there
            return Answer(200, b"", {"Metadata-Flavor": "Google"})
        if "/token" in request.path:
            # By "default" or by its email, as the version of google-auth is.
            request = request._replace(path=f"/computeMetadata/v1/{TOKEN}")
        found = super().answer(request)
        kind = "application/json" if found.body.startswith(b"{") else "application/text"
        return found._replace(headers={**found.headers, "Content-Type": kind})

    def said(self) -> str:
        host = self.server.origin.removeprefix("http://")
        return run_script(
            INSTANCE,
            self.service.endpoint,
            K_SERVICE="front",
            GCE_METADATA_HOST=host,
            GCE_METADATA_IP=host,
        )

    def test_a_hint(self):
        """Project, region, URL and token all come from the metadata server."""
        self.assertEqual("sent", self.said(), self.asked())

        (task,), (request,) = self.service.tasks, self.service.requests
        self.assertEqual("Bearer token-1", request.headers["authorization"])
        self.assertIn("/projects/shop/locations/europe-west1/queues/default/", request.path)
        self.assertEqual(
            "https://front-1234567890.europe-west1.run.app/tasks/run/"
            "019a8b1e-7c00-7abc-9def-0123456789ab/",
            task.http_request.url,
        )

    def test_no_token(self):
        """A metadata server that fails, or that hangs when a token is asked for."""
        self.values.pop(TOKEN)
        self.assertIn("no token", self.said())

        original = self.answer

        def hang(request: Request) -> Answer:
            if "/token" in request.path:
                threading.Event().wait(5)
            return original(request)

        self.server.answer = hang
        self.assertIn("no token", self.said())
        self.assertEqual([], self.service.requests)


def run_script(script: str, *words: str, **variables: str) -> str:
    """Run it by another process of Python; return what it prints. It must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
    )
    if done.returncode or done.stderr:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


@tag("processes")
class SettingsTests(SimpleTestCase):
    """A settings module that imports the package."""

    def test_without_google_auth(self):
        """It can be imported before apps are loaded; the checks say what is missing."""
        run_script(WITHOUT)

    @needs_google
    def test_nothing_is_imported_or_asked_without_a_hint(self):
        """Neither by the settings nor by the checks, on Cloud Run as on a laptop."""
        run_script(IDLE, "dbtasks.W025")
        run_script(IDLE, K_SERVICE="shop")
        run_script(IDLE, DBTASKS_URL="http://127.0.0.1")
