"""A PostgreSQL server of a test's own, which may be restarted."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

import psycopg


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
