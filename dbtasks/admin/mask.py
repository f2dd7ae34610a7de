"""Hiding the secrets of a row.

Owns which values are hidden from people: those whose names contain a word of OPTIONS["mask"], those
that were noted at enqueue, and passwords in URLs, wherever they are repeated. Never imports task
code, and never changes what is stored.
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ..backend import backend_of
from ..base import registry
from ..base.secrets import Secrets, is_secret, secrets_of
from ..models import PeriodicTask, ScheduledTask
from ..options import Options

MASK = "••••••"
# A secret of this length or less is masked by its name only: in texts it would match everywhere.
SHORT_SECRET = 3
# A line of a traceback that names a file of code. Nothing in it is masked.
_FRAME = re.compile(
    r'^([ |+-]*File "(?:[^"\n]*\.py|<[^"\n]*>)", line \d+(?:, in [\w.<>]+)?)$', re.MULTILINE
)
# The password of a URL, and the parameters of its query.
_URL_PASSWORD = re.compile(r"""(\b[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/?#:@"']*:)([^\s/?#"']+)@""")
_PARAMETER = re.compile(r"""([?&;])([\w.%-]{1,100})=([^\s&;#"']+)""")


class Mask:
    """Hides the secrets of one row, also where they are repeated in other values and errors."""

    def __init__(self, row: ScheduledTask | PeriodicTask) -> None:
        self.row = row
        backend = backend_of(row.backend)
        options = backend.config if backend else Options()
        self._mask = options.mask
        self._noted = Secrets.noted(getattr(row, "meta", None))

    def hides(self, name: str) -> bool:
        """Return whether values of that name are secrets."""
        return is_secret(name, self._mask)

    def value(self, value: Any) -> Any:
        """Return the JSON value without its secrets."""
        if isinstance(value, dict):
            return {k: MASK if self.hides(k) else self.value(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def args(self) -> list[Any]:
        """Return the positional arguments without their secrets."""
        return [
            MASK if self._hides_place(place) else self.value(item)
            for place, item in enumerate(self.row.args or [])
        ]

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments without their secrets."""
        return {
            name: MASK if self._hides_argument(name) else self.value(item)
            for name, item in (self.row.kwargs or {}).items()
        }

    def text(self, text: str) -> str:
        """Return the text with each verbatim copy of a secret argument masked.

        Names of files in a traceback stay as they are.
        """
        for secret in self._secrets:
            if "\n" in secret:
                text = text.replace(secret, MASK)
        # Every second part is a line that names a file.
        parts = _FRAME.split(text)
        parts[::2] = map(self._masked, parts[::2])
        return "".join(parts)

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        if "://" in text:
            text = _URL_PASSWORD.sub(rf"\1{MASK}@", text)
        return _PARAMETER.sub(self._masked_parameter, text) if "=" in text else text

    def _masked_parameter(self, found: re.Match[str]) -> str:
        start, name, value = found.groups()
        return f"{start}{name}={MASK if self.hides(name) else value}"

    def _hides_place(self, place: int) -> bool:
        return self._noted.hides(place) or self._declared.hides(place)

    def _hides_argument(self, name: str) -> bool:
        declared = self._declared.declared
        return (
            self.hides(name)
            or name in self._noted.kwargs
            or (declared is not None and name not in declared)
        )

    @cached_property
    def _declared(self) -> Secrets:
        """The secret parameters of the function, if this process has imported it."""
        task = registry.get(self.row.task_path)
        if task is not None:
            return secrets_of(task.func, task.takes_context, self._mask) or Secrets()
        # Nothing was noted for a schedule, so that any of its arguments may be a secret.
        return Secrets(rest=0) if isinstance(self.row, PeriodicTask) else Secrets()

    @cached_property
    def _secrets(self) -> list[str]:
        args, kwargs = self.row.args or [], self.row.kwargs or {}
        values = [
            *((self._hides_place(place), item) for place, item in enumerate(args)),
            *((self._hides_argument(name), item) for name, item in kwargs.items()),
        ]
        leaves = (leaf for secret, item in values for leaf in _leaves(self, item, secret))
        texts = {text for leaf in leaves for text in _spellings(leaf)}
        # The longest first, because one secret may be part of another.
        return sorted((t for t in texts if len(t) > SHORT_SECRET), key=len, reverse=True)


def _leaves(mask: Mask, value: Any, secret: bool) -> Iterator[Any]:
    """Yield the secret values in a JSON value; `secret` says that all in it are."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(mask, item, secret or mask.hides(name))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(mask, item, secret)
    elif secret and not (value is None or isinstance(value, bool)):
        yield value
    elif isinstance(value, str) and "://" in value:
        yield from (found[2] for found in _URL_PASSWORD.finditer(value))


def _spellings(leaf: Any) -> set[str]:
    """Return the forms of the value in a message: as it is, as Python and as JSON write it."""
    if not isinstance(leaf, str):
        return {repr(leaf)}
    # If a text contains both kinds of quotes, repr() escapes the single ones.
    return {leaf, repr(leaf)[1:-1], repr(f"{leaf}\"'")[1:-4], json.dumps(leaf)[1:-1]}
