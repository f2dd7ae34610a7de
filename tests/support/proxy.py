"""A network that fails when told to: between a runner and the server of the test's database."""

import math
import selectors
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections to the server of a database URL, and stops doing so when told."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        user = parts.netloc.rpartition("@")[0]
        port = self._listener.getsockname()[1]
        options = "sslmode=disable" if parts.scheme.startswith("postgres") else ""
        # The same URL by way of this proxy, unencrypted.
        self.url = parts._replace(netloc=f"{user}@127.0.0.1:{port}", query=options).geturl()
        # While set, connections are accepted and bytes arrive, and nothing ever comes of it.
        self.is_hole = threading.Event()
        # Each connection is like that once so many pieces of the server's words went through it.
        self.most_replies = math.inf
        # Connections of before the last forget() are like that.
        self._forgotten = 0
        # Seconds for which all bytes are held up.
        self.delay = 0.0
        # Counts the cuts: connections of before the last one are at an end.
        self._cuts = 0
        # Requests that have these in this order are let through, their replies are not.
        self.lose: list[bytes] = []
        self.lost = threading.Event()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections that there are."""
        self._cuts += 1

    def forget(self) -> None:
        """Swallow what comes on the connections that there are, as a NAT does after a while."""
        self._forgotten += 1

    def close(self) -> None:
        """Accept no more connections, and drop those that there are."""
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            ends: Any = {client: server, server: client}
            ready = selectors.DefaultSelector()
            for end in ends:
                ready.register(end, selectors.EVENT_READ)
            wanted, is_losing, cuts, replies = list(self.lose), False, self._cuts, 0
            forgotten = self._forgotten
            while not self._closed and self._cuts == cuts:
                for key, _ in ready.select(0.05):
                    try:
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    except OSError:
                        data = b""
                    if is_losing and key.fileobj is server:
                        # The server has answered, so it has done what was asked.
                        self.lost.set()
                        return
                    if not data:
                        return
                    if (
                        self._forgotten > forgotten
                        or self.is_hole.is_set()
                        or replies >= self.most_replies
                    ):
                        continue
                    replies += key.fileobj is server
                    time.sleep(self.delay)
                    ends[key.fileobj].sendall(data)
                    if key.fileobj is client and not self.lost.is_set():
                        wanted = wanted or list(self.lose)
                        while wanted and wanted[0] in data:
                            wanted.pop(0)
                            is_losing = not wanted
