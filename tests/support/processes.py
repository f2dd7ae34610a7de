"""Commands in processes of their own, on the database of the running test."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.db import connections
from django.test import TransactionTestCase, tag

from demo.databases import sqlite_url

from .waiting import MAX_WAIT, until

ROOT = Path(__file__).resolve().parents[2]
MANAGE = (sys.executable, ROOT / "manage.py")


def database_url(alias: str = "default") -> str:
    """Return the URL of a test database, which is not the one in the settings."""
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return sqlite_url(Path(name))
    return urlsplit(os.environ["TEST_DATABASE"])._replace(path=f"/{quote(name)}").geturl()


def freeze(pid: int) -> None:
    """Let a process stand still, but not while it has the lock of a SQLite file.

    Nobody else could write to that, and so nobody could help.
    """

    def stands_still() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if is_free := all(map(_is_free, connections.all())):
            return is_free
        os.kill(pid, signal.SIGCONT)
        return False

    until(stands_still, "A moment without the lock")


def _is_free(connection: Any) -> bool:
    """Tell whether the database, if it is a file, can be written to within a second."""
    if connection.vendor != "sqlite":
        return True
    with closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=1)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


class Child:
    """A command, of ``manage.py`` unless told, that runs beside the test."""

    def __init__(
        self,
        *arguments: Any,
        environment: dict[str, str],
        program: Sequence[Any] = MANAGE,
        folder: Path | None = None,
        stdin: int | None = None,
    ) -> None:
        # What is empty is not set: compiled modules are kept, for all the processes to come.
        usual = {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
        everything = os.environ | usual | environment
        self.process = subprocess.Popen(
            [*map(str, program), *map(str, arguments)],
            cwd=folder,
            env={name: value for name, value in everything.items() if value},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own: a signal to all of it reaches nobody else.
            process_group=0,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self.readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in pairs]
        for reader in self.readers:
            reader.start()

    @property
    def stdout(self) -> str:
        return "".join(self.out)

    @property
    def stderr(self) -> str:
        return "".join(self.err)

    @property
    def said(self) -> str:
        return self.stdout + self.stderr

    def wait_for(self, text: str) -> None:
        """Block until the command has said the text; raise AssertionError if it will not."""
        try:
            until(lambda: text in self.said or self.process.poll() is not None, text)
        except AssertionError as error:
            raise AssertionError(f"{error} It said: {self.said}") from None
        if self.process.poll() is not None:
            self.end()
        if text not in self.said:
            raise AssertionError(f"The command ended without {text!r}: {self.said}")

    def signal(self, number: int) -> None:
        """Send it that signal."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send that signal to it and to all that it has started, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Return its exit code once it has ended and all that it said is here."""
        code = self.process.wait(MAX_WAIT)
        for reader in self.readers:
            reader.join(MAX_WAIT)
        return code

    def kill(self) -> None:
        """End it, whatever it does, and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def _read(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line)


@tag("processes")
class ProcessTestCase(TransactionTestCase):
    """Starts commands on the test's database, and ends them with the test."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def start(self, *arguments: Any, program: Sequence[Any] = MANAGE, **environment: str) -> Child:
        """Start ``manage.py``, or `program`, with the arguments and the settings of the tests."""
        defaults = {
            "DJANGO_SETTINGS_MODULE": settings.SETTINGS_MODULE,
            "TEST_DATABASE": database_url(),
            "DBTASKS_DATABASE": database_url(),
        }
        child = Child(*arguments, environment=defaults | environment, program=program)
        self.addCleanup(child.kill)
        return child
