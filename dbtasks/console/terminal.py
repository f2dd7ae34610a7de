"""Writing to a terminal, or to another stream.

Owns what may be printed safely, and the bar: a line that is drawn below all others. Never raises an
exception because a stream is closed.
"""

import re
import threading
from contextlib import suppress
from textwrap import indent
from typing import Any

from ..schedule.duration import Duration

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, limit: int = 300) -> str:
    """Return the text as one safe line: cut off at `limit`, with control characters escaped."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: Exception) -> str:
    """Return the first line of the exception's message as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{printable(lines[0].strip()).rstrip('.')}."


def humanize_seconds(value: float | None) -> str:
    """Return seconds as people read them, such as ``3 ms``, ``1.2 s`` or ``1h5m``."""
    if value is None:
        return "–"
    value = max(0.0, value)
    if value < 1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return str(Duration(round(value)))


def plural(count: int, noun: str) -> str:
    """Return the count with its noun, such as ``1 task`` or ``1,200 tasks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Terminal:
    """A stream of lines and, on a terminal, a bar below them that is drawn again and again.

    Any thread may write. `prefix` is written before each line. Errors of a closed stream are
    ignored.
    """

    def __init__(self, stream: Any, prefix: str = "") -> None:
        self._stream, self.prefix = stream, prefix
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = threading.RLock()
        self._bar = ""

    def isatty(self) -> bool:
        return bool(getattr(self._stream, "isatty", bool)())

    def can(self, text: str) -> bool:
        """Return whether the stream's encoding has all of the characters."""
        try:
            text.encode(self._encoding)
        except UnicodeError:
            return False
        return True

    def write(self, text: str) -> int:
        """Write the text, which must be whole lines, above the bar."""
        shown = indent(text, self.prefix, bool) if self.prefix else text
        with self._lock:
            self._put(f"{self._erase()}{shown}{self._bar}")
        return len(text)

    def line(self, text: str) -> None:
        """Write one line above the bar."""
        self.write(f"{text}\n")

    def bar(self, text: str) -> None:
        """Draw the text as the bar; an empty text removes the bar."""
        with self._lock:
            erase, self._bar = self._erase(), text
            self._put(f"{erase}{text}")

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def _erase(self) -> str:
        return "\r\x1b[K" if self._bar else ""

    def _put(self, text: str) -> None:
        if not self.can(text):
            text = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
        try:
            # Django's wrapper would add a newline to each text.
            getattr(self._stream, "_out", self._stream).write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal, or the reader of the pipe, is gone
            pass
