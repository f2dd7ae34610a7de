"""The address at which the site listens, from the command line and the environment.

Owns how an address may be written, and the check that it is free. Never keeps a socket open.
"""

import os
import re
import socket
import stat
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

# PORT, HOST or HOST:PORT, with an IPv6 host in brackets; as for runserver, the host may be short.
ADDRPORT = re.compile(
    r"^(?:(?P<port>\d+)|(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/]+)?(?::(?P<its_port>\d+))?)$"
)
# Short forms of hosts.
SHORT = {"0": "0.0.0.0"}
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
# Files that container engines make, and variables that they set.
CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
CONTAINER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")


def in_container(environment: Mapping[str, str]) -> bool:
    """Return whether this process runs in a container, whose loopback others cannot reach."""
    return any(map(os.path.exists, CONTAINER_FILES)) or any(
        environment.get(name) for name in CONTAINER_VARIABLES
    )


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port, or the path of a Unix socket."""

    host: str = LOOPBACK
    port: int = 8000
    uds: str | None = None

    def __str__(self) -> str:
        return self.url("http")

    def url(self, scheme: str) -> str:
        """Return the address as people write it."""
        if self.uds:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/"

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine, or container, reach it."""
        return self.uds is None and ip_address(self.host).is_loopback

    def connect(self) -> socket.socket:
        """Return a connection to the server that listens there; raise OSError if none does."""
        if self.uds and sys.platform != "win32":
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

    The variables are GRANIAN_HOST, GRANIAN_PORT and GRANIAN_UDS, else PORT. Without a host, the
    address is that of the loopback; with PORT alone, as container platforms set it, and inside of a
    container, all interfaces. Raise ValueError if the address is not valid.
    """
    host = environment.get("GRANIAN_HOST")
    uds = None if addrport else environment.get("GRANIAN_UDS")
    variable = next((name for name in ("GRANIAN_PORT", "PORT") if name in environment), None)
    port = environment[variable] if variable else "8000"
    is_open = variable == "PORT" or in_container(environment)
    if addrport:
        own_host, own_port = _split(addrport)
        host = own_host or host
        if own_port:
            port, variable, is_open = own_port, None, in_container(environment)
    try:
        return make(host or (EVERYWHERE if is_open else LOOPBACK), port, uds)
    except ValueError as error:
        raise ValueError(f"{variable} in the environment: {error}" if variable else error) from None


def _split(addrport: str) -> tuple[str | None, str | None]:
    """Return host and port of the text, each None if it is not there."""
    try:
        if ip_address(addrport).version == 6:
            return addrport, None
    except ValueError:
        pass
    found = ADDRPORT.match(addrport)
    if found is None:
        raise ValueError(
            f"{addrport!r} is not a valid address. Use PORT or HOST:PORT, such as 0:8000."
        )
    return found["host"], found["port"] or found["its_port"]


def make(host: str, port: str | int, uds: str | None = None) -> Address:
    """Return the address; raise ValueError if the port is not valid or the host is not found."""
    if not str(port).isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{str(port)!r} is not a valid port. Use a number from 1 to 65535.")
    if uds:
        return Address(uds=uds)
    return Address(_resolved(SHORT.get(host, host.strip("[]"))), int(port))


def _resolved(host: str) -> str:
    """Return the IP address of the host, which the web server needs. IPv4 comes first."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"The host {host!r} cannot be found: {why}. Use an IP address, such as 127.0.0.1."
        ) from None
    families = {family: str(address[0]) for family, _, _, _, address in reversed(found)}
    return families.get(socket.AF_INET) or next(iter(families.values()))
