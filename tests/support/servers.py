"""Database servers of a test's own, which may crash, and the sessions of the one in use."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

from django.db import connections

from .rows import DB, vendor
from .waiting import until


class Postgres:
    """A new server in a folder of its own, on a free port; raises SkipTest where none can be."""

    def __init__(self) -> None:
        self._bin = _binaries()
        # Not below the home of root, where the server's user may not look.
        self.folder = Path(tempfile.mkdtemp(prefix="dbtasks-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", self.folder / "base", "-U", "postgres", "-A", "trust")
        self._control("start")
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def restart(self) -> None:
        """Restart it as a crash does; return once it takes connections again."""
        self._control("restart", "-m", "immediate")

    def close(self) -> None:
        """Stop the server and delete all that it wrote."""
        self._control("stop", "-m", "immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def fetch(self, sql: str) -> list[Any]:
        """Return the rows of a query."""
        import psycopg

        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]

    def _control(self, *arguments: str) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.folder / "base", "-l", log, "-o", options, "-w", *arguments)

    def _run(self, name: str, *arguments: Any) -> None:
        command = [self._bin / name, *arguments]
        if os.geteuid() == 0:
            # The server refuses to run as root.
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(
            list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=self.folder
        )


class MariaDB:
    """A new server in a folder of its own, on a free port; raises SkipTest where none can be."""

    def __init__(self) -> None:
        for name in ("mariadbd", "mariadb-install-db"):
            if _program(name) is None:
                if os.environ.get("CI"):
                    raise AssertionError(f"MariaDB's {name} is needed here.")
                raise SkipTest(f"MariaDB's {name} is not installed.")
        self.folder = Path(tempfile.mkdtemp(prefix="dbtasks-mariadb-"))
        self._owner = ["--user=mysql"] if os.geteuid() == 0 else []
        if self._owner:
            shutil.chown(self.folder, "mysql")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        subprocess.run(
            [
                *(_program("mariadb-install-db"), "--no-defaults", *self._owner),
                *(f"--datadir={self.folder / 'base'}", "--auth-root-authentication-method=normal"),
            ],
            check=True,
            capture_output=True,
        )
        self.url = f"mysql://root@127.0.0.1:{self.port}/dbtasks"
        self.start()
        self.fetch("CREATE DATABASE dbtasks", database=None)

    def start(self) -> None:
        """Start it; return once it takes connections."""
        self._process = subprocess.Popen(
            [
                *(_program("mariadbd"), "--no-defaults", *self._owner),
                f"--datadir={self.folder / 'base'}",
                f"--socket={self.folder / 'socket'}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--log-error={self.folder / 'log'}",
                "--character-set-server=utf8mb4",
            ]
        )
        until(self.answers, "MariaDB")

    def restart(self) -> None:
        """Kill it as nothing else does, and start it again."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.start()

    def close(self) -> None:
        """Stop the server and delete all that it wrote."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        """Tell whether it takes connections."""
        import MySQLdb

        try:
            self.fetch("SELECT 1", database=None)
        except MySQLdb.OperationalError:
            return False
        return True

    def fetch(self, sql: str, database: str | None = "dbtasks") -> list[Any]:
        """Return the rows of a query."""
        import MySQLdb

        place = {} if database is None else {"database": database}
        connection = MySQLdb.connect(
            host="127.0.0.1", port=self.port, user="root", autocommit=True, **place
        )
        try:
            cursor = connection.cursor()
            cursor.execute(sql)
            return list(cursor.fetchall())
        finally:
            connection.close()


def kill_connections() -> None:
    """End all sessions of the test's database but the test's own; SQLite has none."""
    with connections[DB].cursor() as cursor:
        if vendor() == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        cursor.execute(
            "SELECT id FROM information_schema.processlist "
            "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        )
        for (id,) in cursor.fetchall():
            cursor.execute(f"KILL {id}")


def _binaries() -> Path:
    """Return the folder of the server's programs; raise SkipTest if there is none."""
    found = [Path(path).parent for name in ("initdb",) if (path := shutil.which(name))]
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) + found
    for folder in found:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    if os.environ.get("CI"):
        raise AssertionError("PostgreSQL's initdb and pg_ctl are needed here.")
    raise SkipTest("PostgreSQL's initdb and pg_ctl are not installed.")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
