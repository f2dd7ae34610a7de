"""The address at which the site listens, from the command line and the environment.

Owns how an address may be written, and the check that it is free. Never keeps a socket open.
"""

import os
import re
import socket
import stat
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

# The same as for runserver: PORT, or HOST:PORT with an IPv6 host in brackets.
ADDRPORT = re.compile(r"^(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):)?(?P<port>\d+)$")
# Short forms of hosts.
SHORT = {"0": "0.0.0.0"}


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port, or the path of a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None

    def __str__(self) -> str:
        if self.uds:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def connect(self) -> socket.socket:
        """Return a connection to the server that listens there; raise OSError if none does."""
        if self.uds:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(1)
            try:
                connection.connect(self.uds)
            except OSError:
                connection.close()
                raise
            return connection
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return socket.create_connection((everywhere.get(self.host, self.host), self.port), 1)

    def trouble(self) -> str | None:
        """Return a message if a server cannot listen there, else None."""
        if self.uds:
            return self._trouble_with_file(Path(self.uds))
        # Servers of one user can share a port if all of them ask for it; each then receives some of
        # the requests. This socket does not ask, so that it notices another server.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            with socket.socket(family) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((self.host, self.port))
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            return f"Cannot listen at {self}: {why}. Choose another address or port."
        return None

    def _trouble_with_file(self, path: Path) -> str | None:
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                return f"{path} exists and is not a socket. Choose another path."
        except FileNotFoundError:
            if not os.access(path.parent, os.W_OK):
                return f"Cannot create a socket in {path.parent}. Choose another folder."
            return None
        try:
            with closing(self.connect()):
                return f"Another process already listens at {path}. Choose another path."
        except OSError:
            # Left behind by a server that was killed.
            path.unlink()
            return None


def parse(addrport: str, environment: Mapping[str, str]) -> Address:
    """Return the address of the command line, completed from the environment.

    The variables are GRANIAN_HOST, GRANIAN_PORT and GRANIAN_UDS, else PORT. PORT alone means all
    interfaces, as container platforms expect. Raise ValueError if the address is not valid.
    """
    host, port = environment.get("GRANIAN_HOST"), environment.get("GRANIAN_PORT")
    uds = None if addrport else environment.get("GRANIAN_UDS")
    if port is None and (port := environment.get("PORT")) is not None:
        host = host or "0.0.0.0"
    if addrport:
        found = ADDRPORT.match(addrport)
        if found is None:
            raise ValueError(
                f"{addrport!r} is not a valid address. Use PORT or HOST:PORT, such as 0:8000."
            )
        host, port = found["host"] or host, found["port"]
    return make(host or "127.0.0.1", port or "8000", uds)


def make(host: str, port: str | int, uds: str | None = None) -> Address:
    """Return the address; raise ValueError if the port is not valid."""
    if not str(port).isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{str(port)!r} is not a valid port. Use a number from 1 to 65535.")
    host = SHORT.get(host, host.strip("[]"))
    return Address(host, int(port), uds)
