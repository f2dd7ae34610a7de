"""A runner inside of gunicorn, in a real one."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.test import tag

from dbtasks.models import ScheduledTask

from ..support.processes import Child
from ..support.sites import SiteTestCase, pids
from ..support.waiting import until


@tag("site")
class GunicornTests(SiteTestCase):
    """The hooks, as demo/deployment/gunicorn.conf.py has them."""

    def gunicorn(self, *arguments: Any, **environment: str) -> Child:
        """Start gunicorn with the configuration of the deployment page, which it finds itself."""
        command = [sys.executable, "-m", "gunicorn", *arguments]
        return self.serve(*command, DJANGO_SETTINGS_MODULE="mysite.settings", **environment)

    def test_runs_tasks_and_stops_in_its_grace(self):
        """A task of a request is run; SIGTERM lets a running one, and a request, finish."""
        child = self.gunicorn()
        self.runs_in(child)

        [result_id] = self.get("enqueue/1").values()
        done = ScheduledTask.objects.filter(id=result_id, return_value=2)
        until(done.exists, "The result")
        busy = self.make_busy()
        with ThreadPoolExecutor() as pool:
            request = pool.submit(self.get, "wait")
            until((self.folder / "asked").exists, "The request")
            child.signal(signal.SIGTERM)
            # At once: not when the request has been answered.
            child.wait_for("waiting up to 30.0 s for 1 running task")
            (self.folder / "go").touch()
            (self.folder / "answer").touch()
            self.assertEqual({}, request.result())

        self.assertEqual(0, child.end(), child.said)
        self.assertIn("Ran 2 tasks in ", child.said)
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_one_worker_has_the_runner_and_another_takes_over(self):
        """Of two workers one has it; after kill -9 of that one, the other's runs its task again."""
        child = self.gunicorn()
        first = self.runs_in(child)
        until(lambda: child.said.count("Booting worker") == 2, "Both workers")
        busy = self.make_busy()
        self.assertEqual([first], pids(child))

        (self.folder / "go").touch()
        os.kill(first, signal.SIGKILL)

        self.assertNotEqual(first, self.runs_in(child, 2))
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_a_reload_moves_the_runner(self):
        """SIGHUP, gunicorn's reload, lets a task finish; a worker with the new code goes on."""
        child = self.gunicorn()
        first = self.runs_in(child)
        busy = self.make_busy()

        child.signal(signal.SIGHUP)
        child.wait_for("Handling signal: hup")
        (self.folder / "go").touch()

        self.assertNotEqual(first, self.runs_in(child, 2))
        self.wait_for_status(busy, "SUCCESSFUL")
        self.assertEqual(1, ScheduledTask.objects.get().attempt)

    def test_it_gives_back_before_it_is_killed(self):
        """A grace beyond gunicorn's timeout is cut: the row is READY before the worker is gone."""
        path = self.folder / "gunicorn.conf.py"
        text = path.read_text()
        path.write_text(text.replace("graceful_timeout = 45", "graceful_timeout = 3"))
        child = self.gunicorn()
        self.runs_in(child)
        busy = self.make_busy()

        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertIn("1 running task requeued", child.said)
        self.wait_for_status(busy, "READY")

    def test_a_wrong_value_ends_the_server(self):
        """A variable that means nothing is named, and the site is not served."""
        child = self.gunicorn(DBTASKS_WORKERS="0")

        self.assertNotEqual(0, child.end())
        self.assertIn("DBTASKS_WORKERS in the environment: '0' is not a valid number", child.said)
