"""The certificates of the keys with which Google signs tokens.

Owns when they are fetched and how long they are kept. Never asks for them without a token to
verify.
"""

import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..shown import shown

# Seconds for one request.
TIMEOUT = 2.0
# The shortest and the longest time in seconds that certificates are kept, whatever the answer says.
MIN_AGE, MAX_AGE = 300, 86_400
# Seconds between two requests because of an unknown key, or because the last one failed; and
# between two while there are no certificates at all.
UNKNOWN_KEY_INTERVAL = 60.0
RETRY_INTERVAL = 5.0


class NoCertificates(Exception):
    """Raised while the certificates are not known, and cannot be fetched."""


class Certificates:
    """The certificates of the keys that sign Google's tokens, fetched when they are needed.

    Kept for as long as the answer says, and longer while they cannot be fetched again.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._known: Mapping[str, str] = {}
        self._good_until = self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def get(self, key: str | None) -> Mapping[str, str]:
        """Return the certificates by the id of their key, with that key if Google has it.

        Raise NoCertificates if there are none. One thread at a time asks for them, which may take
        some seconds. Others wait only if the key is not known.
        """
        # With a limit, because a lock that a fork has copied may never be released.
        wait = 0.0 if self._has(key) else 2 * TIMEOUT
        if self._is_outdated(key) and self._lock.acquire(timeout=wait):
            try:
                if self._is_outdated(key):
                    self._fetch()
            finally:
                self._lock.release()
        if not self._known:
            raise NoCertificates(f"{shown(self.url)} cannot be fetched.")
        return self._known

    def _has(self, key: str | None) -> bool:
        return bool(self._known) if key is None else key in self._known

    def _is_outdated(self, key: str | None) -> bool:
        now = time.monotonic()
        since = now - self._asked_at
        if not self._known:
            return since >= RETRY_INTERVAL
        if now >= self._good_until:
            return True
        return key is not None and key not in self._known and since >= UNKNOWN_KEY_INTERVAL

    def _fetch(self) -> None:
        """Fetch them; without an answer the old ones stay, for another minute."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        try:
            answer = Request()(self.url, timeout=TIMEOUT)
            found = json.loads(answer.data) if answer.status == 200 else None
        except (GoogleAuthError, ValueError):
            found = None
        now = self._asked_at = time.monotonic()
        if isinstance(found, dict) and found and _are_texts(found.values()):
            self._known, self._good_until = found, now + _age(answer.headers)
        else:
            self._good_until = now + UNKNOWN_KEY_INTERVAL


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _age(headers: Mapping[str, str]) -> float:
    """Return for how many seconds an answer may be kept."""
    found = re.search(r"max-age=(\d{1,9})", headers.get("Cache-Control", ""))
    return min(MAX_AGE, max(MIN_AGE, int(found[1]) if found else 0))
