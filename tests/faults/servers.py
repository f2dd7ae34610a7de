"""A MariaDB server of a test's own, which may be killed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

from ..support.processes import wait_until


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
        wait_until(self.answers, "MariaDB")

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


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
