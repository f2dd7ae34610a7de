"""Hiding the secrets of a row.

Owns which values are hidden from people: those whose names contain a part in OPTIONS["mask"],
wherever they are repeated. Never imports task code, and never changes what is stored.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from inspect import signature
from typing import Any

from ..backend import backend_of
from ..base import registry
from ..models import PeriodicTask, ScheduledTask
from ..options import Options

MASK = "••••••"
# A secret of this length or less is masked by its name only: in texts it would match everywhere.
SHORT_SECRET = 3


class Mask:
    """Hides the secrets of one row, also where they are repeated in other values and errors."""

    def __init__(self, row: ScheduledTask | PeriodicTask) -> None:
        self.row = row
        backend = backend_of(row.backend)
        options = backend.config if backend else Options()
        self.parts = [part.lower() for part in options.mask]

    def hides(self, name: str) -> bool:
        """Return whether values of that name are secrets."""
        return any(part in name.lower() for part in self.parts)

    def value(self, value: Any) -> Any:
        """Return the JSON value without its secrets."""
        if isinstance(value, dict):
            return {k: MASK if self.hides(k) else self.value(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def args(self) -> list[Any]:
        """Return the positional arguments without their secrets."""
        names = self._names
        return [
            MASK if n < len(names) and self.hides(names[n]) else self.value(item)
            for n, item in enumerate(self.row.args or [])
        ]

    def text(self, text: str) -> str:
        """Return the text with each verbatim copy of a secret argument masked."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    @cached_property
    def _names(self) -> list[str]:
        """The parameters of the function; none if this process has not imported it."""
        task = registry.get(self.row.task_path)
        if task is None:
            return []
        try:
            names = list(signature(task.func).parameters)
        except (TypeError, ValueError):  # a callable without a signature
            return []
        return names[1:] if task.takes_context else names

    @cached_property
    def _secrets(self) -> list[str]:
        named = zip(self._names, self.row.args or [], strict=False)
        call = [*(self.row.args or []), self.row.kwargs or {}, dict(named)]
        texts = {text for leaf in self._leaves(call, False) for text in _spellings(leaf)}
        # The longest first, because one secret may be part of another.
        return sorted((t for t in texts if len(t) > SHORT_SECRET), key=len, reverse=True)

    def _leaves(self, value: Any, secret: bool) -> Iterator[Any]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from self._leaves(item, secret or self.hides(name))
        elif isinstance(value, list):
            for item in value:
                yield from self._leaves(item, secret)
        elif secret and not (value is None or isinstance(value, bool)):
            yield value


def _spellings(leaf: Any) -> set[str]:
    """Return the forms of the value in a message: as it is, as Python and as JSON write it."""
    if not isinstance(leaf, str):
        return {repr(leaf)}
    # If a text contains both kinds of quotes, repr() escapes the single ones.
    return {leaf, repr(leaf)[1:-1], repr(f"{leaf}\"'")[1:-4], json.dumps(leaf)[1:-1]}
