"""HTTP servers on loopback that play services of others."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What a server received; the names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What it answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Loopback:
    """A server whose answers come from one function. Use as a context manager.

    While `is_hanging` is set, requests are accepted and never answered. `connections` is how many
    were opened.
    """

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self.received: list[Request] = []
        self.is_hanging = False
        self.connections = 0
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "Loopback":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, request: Request) -> Answer | None:
        """Return what to answer; None: nothing, because the server is hanging."""
        self.received.append(request)
        if self.is_hanging:
            self._closed.wait()
            return None
        return self.answer(request)


class _Server(ThreadingHTTPServer):
    owner: Loopback
    daemon_threads = True
    # Bursts of connections are not refused.
    request_queue_size = 128

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the connection."""
        self.owner.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Head and body in one packet. In two, each answer takes 40 ms more (Nagle's algorithm).
    wbufsize = 65536
    disable_nagle_algorithm = True
    timeout = 60

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        answer = self.server.owner.respond(request)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = _respond

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
