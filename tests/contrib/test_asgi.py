"""A runner inside of ASGI servers, in real ones."""

import os
import signal
import sys
from importlib.util import find_spec
from typing import Any
from unittest import skipUnless

from asgiref.sync import async_to_sync
from django.test import SimpleTestCase, tag

from dbtasks.contrib.asgi import with_runner
from dbtasks.models import ScheduledTask

from ..support.processes import Child
from ..support.sites import SiteTestCase, pids
from ..support.waiting import until

APPLICATION = "mysite.asgi:application"


@tag("site")
class ServerTests(SiteTestCase):
    """``with_runner(…)``, as demo/deployment/asgi.py has it."""

    def server(self, name: str, *arguments: Any, **environment: str) -> Child:
        """Start that server with the site."""
        host, port = self.address.split(":")
        flags = {
            "uvicorn": ["--host", host, "--port", port],
            "hypercorn": ["--bind", self.address],
            "granian": ["--host", host, "--port", port, "--interface", "asgi"],
        }
        command = [sys.executable, "-m", name, *flags[name], *arguments, APPLICATION]
        return self.serve(*command, **environment)

    def runs_and_stops(self, name: str) -> None:
        """Let a request enqueue, and the server stop while a task runs."""
        child = self.server(name)
        self.runs_in(child)

        [result_id] = self.get("enqueue/1").values()
        done = ScheduledTask.objects.filter(id=result_id, return_value=2)
        until(done.exists, "The result")
        busy = self.make_busy()
        child.signal(signal.SIGTERM)
        child.wait_for("waiting up to 30.0 s for 1 running task")
        (self.folder / "go").touch()

        self.assertIn(child.end(), (0, -signal.SIGTERM), child.said)
        self.assertIn("Ran 2 tasks in ", child.said)
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_runs_tasks_beside_uvicorn(self):
        """Under uvicorn it runs tasks, and lets them finish when the server stops."""
        self.runs_and_stops("uvicorn")

    def test_runs_tasks_beside_hypercorn(self):
        """Under hypercorn it runs tasks, and lets them finish when the server stops."""
        self.runs_and_stops("hypercorn")

    @skipUnless(find_spec("granian"), "needs granian")
    def test_runs_tasks_beside_granian(self):
        """Under Granian it runs tasks, and lets them finish when the server stops."""
        self.runs_and_stops("granian")

    def test_one_process_has_the_runner_and_another_takes_over(self):
        """Of two workers one has it; after kill -9 of that one, the other's runs its task again."""
        child = self.server("uvicorn", "--workers", 2)
        first = self.runs_in(child)
        busy = self.make_busy()
        until(lambda: child.said.count("Application startup complete") == 2, "Both workers")
        self.assertEqual([first], pids(child))

        (self.folder / "go").touch()
        os.kill(first, signal.SIGKILL)

        self.assertNotEqual(first, self.runs_in(child, 2))
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_it_can_be_switched_off(self):
        """With DBTASKS_RUNNER=off the site is served without a runner."""
        child = self.server("uvicorn", DBTASKS_RUNNER="off")

        self.get("enqueue/1")
        child.signal(signal.SIGTERM)
        child.end()

        self.assertNotIn("Worker ", child.said)
        self.assertEqual("READY", ScheduledTask.objects.get().status)

    def test_a_wrong_value_ends_the_server(self):
        """A variable that means nothing is named before the site is served."""
        child = self.server("uvicorn", DBTASKS_GRACE="soon", DBTASKS_QUEUES="mail")

        self.assertNotEqual(0, child.end())
        self.assertIn(
            "DBTASKS_GRACE in the environment: 'soon' is not a valid grace period", child.said
        )

    def test_without_its_table_the_site_is_served(self):
        """A runner that cannot start says why and tries again; requests are answered."""
        child = self.server("uvicorn", TEST_DATABASE=f"sqlite:///{self.folder}/empty.sqlite3")

        child.wait_for("Run 'manage.py migrate' first.")

        self.assertIn("pid", self.get())


class ScopeTests(SimpleTestCase):
    """What goes to the application."""

    def test_other_scopes_pass_as_they_came(self):
        """The application gets the server's own objects; lifespan never reaches it."""
        seen: list[Any] = []

        async def application(*arguments: Any) -> None:
            seen.append(arguments)

        call = async_to_sync(with_runner(application))
        for kind in ("http", "websocket", "something.else"):
            scope, receive, send = {"type": kind}, object(), object()
            call(scope, receive, send)
            self.assertEqual(1, len(seen))
            for given, got in zip((scope, receive, send), seen.pop(), strict=True):
                self.assertIs(given, got)

    def test_an_error_of_the_application_is_the_servers(self):
        """What the application raises goes to the server."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            raise LookupError("mine")

        with self.assertRaisesMessage(LookupError, "mine"):
            async_to_sync(with_runner(application))({"type": "http"}, None, None)
