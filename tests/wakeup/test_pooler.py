"""A runner behind a connection pooler that gives each transaction another session."""

import os
import shutil
import socket
import subprocess
from unittest import skipUnless
from urllib.parse import urlsplit

from django.db import connection

from dbtasks.models import ScheduledTask

from ..support.processes import ProcessTestCase, database_url
from ..support.tasks import add
from ..support.waiting import until

CONFIG = """
[databases]
* = host={server.hostname} port={server.port} user={server.username}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
logfile = {folder}/pgbouncer.log
"""


@skipUnless(connection.vendor == "postgresql", "poolers of this kind stand before PostgreSQL")
class PoolerTests(ProcessTestCase):
    """The real pgbouncer, in the mode that keeps no session."""

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("pgbouncer") is None and not os.environ.get("CI"):
            self.skipTest("pgbouncer is not installed")
        server = urlsplit(database_url())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = self.folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(server=server, port=port, folder=self.folder))
        # It refuses to run as root.
        user = []
        if os.geteuid() == 0:
            user = ["-u", "postgres"]
            shutil.chown(self.folder, "postgres")
        pooler = subprocess.Popen(["pgbouncer", "-q", *user, config])
        self.addCleanup(pooler.wait)
        self.addCleanup(pooler.terminate)
        until(lambda: _answers(port), "pgbouncer")
        self.url = server._replace(netloc=f"{server.username}@127.0.0.1:{port}").geturl()

    def test_tasks_run_although_no_hint_arrives(self):
        """The runner says once that it polls, and finds what is enqueued."""
        runner = self.start("taskrunner", "-w", "4", TEST_DATABASE=self.url)
        runner.wait_for("A pooler stands before 'default'")

        add.enqueue_many([((n, 1), {}) for n in range(200)])
        until(lambda: ScheduledTask.objects.successful().count() == 200, "the last task")
        runner.process.terminate()

        self.assertEqual(0, runner.end())
        self.assertEqual(1, runner.said.count("A pooler stands"))
        self.assertFalse(ScheduledTask.objects.running().exists())


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
