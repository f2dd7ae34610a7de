"""A service that takes hints and sends them on, late, twice, in another order, or never."""

import heapq
import http.client
import json
import random
import threading
import time
from collections import Counter
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from dbtasks.push import HEADER

from ..support.loopback import Answer, Loopback, Request

# Deliveries at the same time, how often one is tried, and seconds between two tries.
THREADS, TRIES, PAUSE = 8, 20, 0.3


class PushService:
    """Use as a context manager; `url` is where hints are sent, `ports` those of the site.

    Of the hints, the share `lose` is lost, the share `double` delivered twice, and each up to
    `delay` seconds late. What is not answered with 2xx is tried again. `happened` counts all that.
    """

    def __init__(
        self, ports: list[int], chance: random.Random, lose: float, double: float, delay: float
    ) -> None:
        self.ports, self.chance = ports, chance
        self.lose, self.double, self.delay = lose, double, delay
        self.happened: Counter[str] = Counter()
        self._server = Loopback(self._take)
        self.url = f"{self._server.origin}/hints"
        self._waiting: list[tuple[float, int, dict[str, Any], int]] = []
        self._number = count()
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]

    def __enter__(self) -> "PushService":
        self._server.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._server.__exit__()

    def _take(self, request: Request) -> Answer:
        hint = json.loads(request.body)
        with self._changed:
            luck = self.chance.random()
            copies = 0 if luck < self.lose else 2 if luck < self.lose + self.double else 1
            self.happened["hints"] += 1
            self.happened[("lost", "once", "doubled")[copies]] += 1
            for _ in range(copies):
                self._put(float(hint.get("delay", 0)) + self.chance.uniform(0, self.delay), hint)
        return Answer()

    def _put(self, wait: float, hint: dict[str, Any], tries: int = 0) -> None:
        """Deliver it after so many seconds. The lock must be held."""
        heapq.heappush(self._waiting, (time.monotonic() + wait, next(self._number), hint, tries))
        self._changed.notify()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            hint, tries = found
            what = self._deliver(hint)
            with self._changed:
                self.happened[what] += 1
                if what != "200":
                    if tries + 1 < TRIES:
                        self._put(PAUSE, hint, tries + 1)
                    else:
                        self.happened["given up"] += 1

    def _next(self) -> tuple[dict[str, Any], int] | None:
        """Wait for a hint that is to be delivered, and take it; None once the service ends."""
        with self._changed:
            while not self._is_closed:
                wait = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if wait is not None and wait <= 0:
                    _, _, hint, tries = heapq.heappop(self._waiting)
                    return hint, tries
                self._changed.wait(wait)
        return None

    def _deliver(self, hint: dict[str, Any]) -> str:
        """Call one process of the site; return the status, or that there was none."""
        with self._changed:
            port = self.chance.choice(self.ports)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            path = urlsplit(hint["target"]).path
            connection.request("POST", path, b"", {HEADER: hint["signature"]})
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            return "no answer"
        finally:
            connection.close()
