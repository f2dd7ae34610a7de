"""A runner in a mule of uWSGI, in real ones."""

import os
import signal
import sys
from unittest import skipUnless

from django.db import connection

from dbtasks.models import ScheduledTask
from tests.tasks import add

from ..support.processes import Child
from ..support.sites import UWSGI, SiteTestCase, pyuwsgi, sockets
from ..support.waiting import until

# Appended to an application: a connection that is opened before the fork.
CONNECT = """
from pathlib import Path

from django.db import connection

with connection.cursor() as cursor:
    is_mysql = connection.vendor == "mysql"
    cursor.execute("SELECT " + ("CONNECTION_ID()" if is_mysql else "pg_backend_pid()"))
    Path("session").write_text(str(cursor.fetchone()[0]))
Path("socket").write_text(os.readlink(f"/proc/self/fd/{connection.connection.fileno()}"))
"""


def sessions() -> set[str]:
    """Return the sessions of the database server."""
    if connection.vendor == "mysql":
        query = "SELECT id FROM information_schema.processlist"
    else:
        query = "SELECT pid FROM pg_stat_activity"
    with connection.cursor() as cursor:
        cursor.execute(query)
        return {str(number) for (number,) in cursor.fetchall()}


@skipUnless(pyuwsgi, "needs pyuwsgi")
class MuleTests(SiteTestCase):
    """``mule = dbtasks.contrib.mule:taskrunner``, as demo/deployment/uwsgi.ini has it."""

    def setUp(self) -> None:
        super().setUp()
        self.configure("processes = 2", "processes = 1")

    def uwsgi(self, **environment: str) -> Child:
        """Start uWSGI with the configuration of the deployment page."""
        script = self.folder / "uwsgi"
        script.write_text(UWSGI)
        return self.serve(sys.executable, script, "--ini", "uwsgi.ini", **environment)

    def configure(self, old: str, new: str) -> None:
        """Change the configuration."""
        path = self.folder / "uwsgi.ini"
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))

    def test_runs_what_the_site_enqueues_and_stops_in_its_grace(self):
        """A task of a request is run; Ctrl-C, which reaches the mule twice, lets tasks finish."""
        child = self.uwsgi()
        self.runs_in(child)

        [result_id] = self.get("enqueue/1").values()
        done = ScheduledTask.objects.filter(id=result_id, return_value=2)
        until(done.exists, "The result")
        busy = self.make_busy()
        child.signal_group(signal.SIGINT)
        child.wait_for("waiting up to 30.0 s for 1 running task")
        (self.folder / "go").touch()

        self.assertEqual(0, child.end(), child.said)
        self.wait_for_status(busy, "SUCCESSFUL")
        self.assertNotIn("leaving now", child.said)

    def test_a_reload_lets_tasks_finish_and_starts_anew(self):
        """SIGHUP, uWSGI's reload, ends the mule in its grace; another one goes on."""
        child = self.uwsgi()
        first = self.runs_in(child)
        busy = self.make_busy()

        child.signal(signal.SIGHUP)
        child.wait_for("SIGHUP: waiting up to 30.0 s for 1 running task")
        (self.folder / "go").touch()

        self.assertNotEqual(first, self.runs_in(child, 2), child.said)
        self.wait_for_status(busy, "SUCCESSFUL")
        self.assertEqual(1, ScheduledTask.objects.get().attempt)
        self.wait_for_status(add.enqueue(1, 1), "SUCCESSFUL")

    def test_a_mule_that_is_killed_loses_nothing(self):
        """After kill -9 uWSGI starts another, and that one starts the task again at once."""
        child = self.uwsgi()
        first = self.runs_in(child)
        busy = self.make_busy()

        (self.folder / "go").touch()
        self.folder.joinpath("started").unlink()
        os.kill(first, signal.SIGKILL)

        self.runs_in(child, 2)
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_without_mercy_the_task_is_requeued(self):
        """When uWSGI waits less than the grace, the task starts again after the stop."""
        self.configure("mule-reload-mercy = 45", "mule-reload-mercy = 1")
        child = self.uwsgi()
        self.runs_in(child)
        busy = self.make_busy()

        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertIn("NO MERCY", child.said)
        (self.folder / "go").touch()
        self.start("taskrunner", "--drain").end()
        self.wait_for_status(busy, "SUCCESSFUL")

    def test_lazy_apps_and_the_environment(self):
        """With lazy-apps a file starts the runner; the environment says how."""
        self.configure("mule = dbtasks.contrib.mule:taskrunner", "lazy-apps = true\nmule = mule.py")
        other = add.enqueue(1, 1)
        child = self.uwsgi(
            DBTASKS_WORKERS="3",
            DBTASKS_QUEUES="mail",
            DBTASKS_WORKER_ID="mill",
            DBTASKS_DELAY="0.5",
            DBTASKS_GRACE="7",
        )
        self.runs_in(child)
        # uWSGI that is stopped while it loads the site ends with an error of its own.
        child.wait_for("WSGI app 0")

        self.wait_for_status(add.using(queue_name="mail").enqueue(1, 1), "SUCCESSFUL")
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertIn("queues: mail\n", child.said)
        self.assertIn("3 threads, polling at least every 500 ms, 7.0 s of grace", child.said)
        self.assertIn("Worker mill-", child.said)
        self.assertIn("Ran 1 task in ", child.said)
        self.wait_for_status(other, "READY")

    def test_a_wrong_value_is_said_once(self):
        """A variable that means nothing is named, and uWSGI does not start mule after mule."""
        child = self.uwsgi(DBTASKS_WORKERS="many")

        child.wait_for("Another try in 10 s.")

        self.assertIn(
            "DBTASKS_WORKERS in the environment: 'many' is not a valid number", child.said
        )
        self.get()
        self.assertEqual(1, child.said.count("The mule runs no tasks"), child.said)

    def test_without_settings_it_says_what_to_add(self):
        """With lazy-apps nobody else names the settings."""
        self.configure("env = DJANGO_SETTINGS_MODULE=mysite.settings", "lazy-apps = true")
        self.configure("mule = dbtasks.contrib.mule:taskrunner", "mule = mule.py")
        child = self.uwsgi()

        child.wait_for("Add 'env = DJANGO_SETTINGS_MODULE=mysite.settings' to uWSGI")

    @skipUnless(connection.vendor != "sqlite", "needs a server")
    def test_sessions_of_the_master_are_left_alone(self):
        """A connection that was opened before the fork is neither used nor ended by the mule."""
        path = self.folder / "mysite" / "wsgi.py"
        path.write_text(f"{path.read_text()}{CONNECT}")
        child = self.uwsgi()
        mule = self.runs_in(child)
        opened = (self.folder / "socket").read_text()

        self.assertIn(opened, sockets(child.process.pid))
        self.assertNotIn(opened, sockets(mule))
        os.kill(mule, signal.SIGTERM)
        self.runs_in(child, 2)
        self.assertIn((self.folder / "session").read_text(), sessions())
