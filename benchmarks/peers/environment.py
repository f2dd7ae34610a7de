"""The environments and processes of the peers.

Owns the cache folder, the peers' databases and every process started for them. Never measures.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from .peer import Peer, Setting

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "3.12"

# Seconds for an answer: the longest is a backlog of 200,000 through a peer's own API.
PATIENCE = 300.0
# Seconds that a worker gets after SIGTERM.
GRACE = 5.0


class Failure(Exception):
    """What a peer could not do; the text is the reason in its row."""


def cache() -> Path:
    """Return the folder of the environments."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dbtasks-benchmarks"


def install(peer: Peer) -> Path:
    """Return the folder of the peer's scripts, after installing it unless that was done before."""
    if not peer.requirements:
        return Path(sys.executable).parent
    folder = cache() / peer.name
    wanted = "\n".join((PYTHON, *peer.requirements))
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        uv("venv", "--quiet", "--clear", "--python", PYTHON, str(folder))
        python = str(folder / "bin" / "python")
        uv("pip", "install", "--quiet", "--python", python, *peer.requirements)
        done.write_text(wanted)
    return folder / "bin"


def uv(*words: str) -> None:
    """Run uv; raise Failure with its last line."""
    command = [os.environ.get("UV", "uv"), *words]
    try:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.CalledProcessError as error:
        raise Failure(f"not installable: {last_line(error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"not installable: {error}") from error


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


@contextmanager
def database(peer: Peer, url: str) -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database for this peer, and drop it afterwards."""
    import psycopg

    name = "dbtasks_bench_" + peer.name.replace("-", "_")
    drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    try:
        connection = psycopg.connect(libpq(url), autocommit=True)
        connection.execute(drop)
        connection.execute(f"CREATE DATABASE {name}")
    except psycopg.Error as error:
        raise Failure(f"no database: {error}") from error
    with connection:
        try:
            yield urlunsplit(urlsplit(libpq(url))._replace(path=f"/{name}"))
        finally:
            connection.execute(drop)


def libpq(url: str) -> str:
    """Return the URL with a scheme that every PostgreSQL driver reads."""
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql"))


class Home:
    """A peer with one of its settings: its environment, its place, and what runs there."""

    def __init__(self, peer: Peer, setting: Setting, url: str) -> None:
        self.peer, self.setting, self.url = peer, setting, url
        self.stack = ExitStack()

    def __enter__(self) -> "Home":
        with ExitStack() as stack:
            self.scripts = install(self.peer)
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            self.door = self.folder / "door"
            if self.peer.server == "postgresql":
                self.url = stack.enter_context(database(self.peer, self.url))
            self.log = stack.enter_context((self.folder / "log").open("ab"))
            self.child = self.start_child()
            stack.callback(self.stop, self.child)
            self.versions = self.ask("prepare")
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Failure):
            self.ask("close")
        self.stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of the peer's processes."""
        ours = [] if self.peer.requirements else [str(ROOT)]
        found = {
            **{key: value for key, value in os.environ.items() if key not in NOT_INHERITED},
            "PATH": f"{self.scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *ours]),
            "BENCH_URL": self.url,
            "BENCH_SOCKET": str(self.door),
            **self.setting.variables,
        }
        if self.peer.django:
            found["DJANGO_SETTINGS_MODULE"] = "peers.django_settings"
            found["BENCH_DJANGO"] = json.dumps(self.peer.django | self.setting.django)
        return found

    def start_child(self) -> "subprocess.Popen[str]":
        """Start the process that answers."""
        return subprocess.Popen(
            [self.scripts / "python", "-P", "-m", "peers.child", self.peer.name],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )

    def ask(self, name: str, **arguments: Any) -> Any:
        """Return what the child's method of that name returns; raise Failure if it could not."""
        assert self.child.stdin and self.child.stdout
        with suppress(BrokenPipeError):
            self.child.stdin.write(json.dumps([name, arguments]) + "\n")
            self.child.stdin.flush()
        if not select.select([self.child.stdout], [], [], PATIENCE)[0]:
            self.stop(self.child)
            raise Failure(f"no answer to {name} in {PATIENCE:.0f} s")
        if not (line := self.child.stdout.readline()):
            raise Failure(f"died at {name}: {self.last_words()}")
        found = json.loads(line)
        if "error" in found:
            raise Failure(found["error"])
        return found["value"]

    @contextmanager
    def worker(self, tell: bool = False) -> Iterator[None]:
        """Run the setting's workers; with `tell`, their tasks tell the child that they began."""
        environment = self.environment | ({"BENCH_TELL": str(self.door)} if tell else {})
        running = []
        try:
            for _ in range(self.setting.processes):
                running.append(self.start_worker(environment))
            try:
                yield
            except Failure as failure:
                raise Failure(f"{failure}{self.ended(running, '; ')}") from failure
            if ended := self.ended(running):
                raise Failure(ended)
        finally:
            self.stop(*running)

    def ended(self, running: "list[subprocess.Popen[bytes]]", before: str = "") -> str:
        """Return the code and last words of a worker that ended by itself, or nothing."""
        codes = [worker.poll() for worker in running if worker.poll() is not None]
        return f"{before}worker ended ({codes[0]}): {self.last_words()}" if codes else ""

    def start_worker(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start one worker."""
        program, *words = self.setting.command
        return subprocess.Popen(
            [self.scripts / program, *words],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def stop(self, *processes: "subprocess.Popen[Any]") -> None:
        """Ask the processes and their children to stop; kill those that do not."""
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def last_words(self) -> str:
        """Return the last line of the log."""
        return last_line((self.folder / "log").read_text(errors="replace")[-4000:])


# The tool's own Python and Django are none of the peers' business.
NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "PYTHONPATH", "VIRTUAL_ENV", "BENCH_TELL"}
