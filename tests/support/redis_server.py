"""A Redis server of a test's own, which may be killed."""

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from typing import Any
from unittest import SkipTest

from .waiting import until

PASSWORD = "of-this-test-only"


class RedisServer:
    """A new server on a free port; raises SkipTest where none can be."""

    def __init__(self) -> None:
        if shutil.which("redis-server") is None or find_spec("redis") is None:
            if os.environ.get("CI"):
                raise AssertionError("redis-server and redis-py are needed here.")
            raise SkipTest("redis-server or redis-py is not installed.")
        self._folder = tempfile.mkdtemp(prefix="dbtasks-redis-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it; return once it answers."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": ""}
        options["requirepass"] = PASSWORD
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        until(self._answers, "Redis")

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and delete what it wrote."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def listeners(self, channel: str) -> int:
        """Return how many connections listen to that channel."""
        [(_, number)] = self.command("pubsub_numsub", channel)
        return int(number)

    def command(self, name: str, *arguments: Any) -> Any:
        """Return the answer to a command."""
        import redis

        with redis.Redis.from_url(self.url) as client:
            return getattr(client, name)(*arguments)

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self.command("ping"))
        except redis.ConnectionError:
            return False
