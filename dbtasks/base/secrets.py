"""Which arguments of a call are secrets, by their names.

Owns the rule by which OPTIONS["mask"] fits a name, and the note about a call's secrets in the meta
of its row. Never looks at a value, and never changes what a task receives.

The note exists because a process that shows the row, such as the admin's, may not have imported the
task and so does not know its parameters.
"""

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, NamedTuple, Self

# The key of the note in a row's meta.
NOTE = "dbtasks.secrets"
# A word of this many letters also counts at the end of a longer one, as in "dbpassword".
LONG_WORD = 5
# The words of a name: snake_case, kebab-case and camelCase, without digits.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


@lru_cache(maxsize=4096)
def is_secret(name: str, mask: tuple[str, ...]) -> bool:
    """Return whether values of that name are secrets, by the words in `mask`."""
    words = _words(name)
    return any(_fits(words, _words(entry)) for entry in mask)


def _fits(words: list[str], entry: list[str]) -> bool:
    """Return whether the words of a name contain the entry, in singular or plural."""
    if not entry:
        return False
    joined = "".join(entry)
    if any(_is_word(word, joined) for word in words):
        return True
    starts = range(len(words) - len(entry) + 1)
    return len(entry) > 1 and any(
        words[n : n + len(entry) - 1] == entry[:-1]
        and words[n + len(entry) - 1] in (entry[-1], f"{entry[-1]}s")
        for n in starts
    )


def _is_word(word: str, wanted: str) -> bool:
    if len(wanted) >= LONG_WORD:
        return word.endswith((wanted, f"{wanted}s"))
    return word in (wanted, f"{wanted}s")


class Secrets(NamedTuple):
    """The secret arguments of a function, or of one call of it."""

    # Places of positional arguments, and the first of those that are all secret.
    args: Collection[int] = ()
    rest: int | None = None
    # Names of keyword arguments, beside those that are secret by themselves.
    kwargs: Collection[str] = ()
    # With ``**secrets``: the declared parameters, which are all that is not secret.
    declared: Collection[str] | None = None

    def hides(self, place: int) -> bool:
        """Return whether the positional argument at that place is a secret."""
        return place in self.args or (self.rest is not None and place >= self.rest)

    def note(self, kwargs: Iterable[str]) -> dict[str, Any]:
        """Return the note about a call with these keyword arguments, as JSON."""
        names = [] if self.declared is None else [k for k in kwargs if k not in self.declared]
        note = {"args": list(self.args), "rest": self.rest, "kwargs": names}
        return {name: value for name, value in note.items() if value not in ([], None)}

    @classmethod
    def noted(cls, meta: Any) -> Self:
        """Return the secrets that the meta of a row notes; none if it notes nothing."""
        note = meta.get(NOTE) if isinstance(meta, dict) else None
        if not isinstance(note, dict):
            return cls()
        args, rest, kwargs = note.get("args"), note.get("rest"), note.get("kwargs")
        return cls(
            args if isinstance(args, list) else (),
            rest if isinstance(rest, int) else None,
            kwargs if isinstance(kwargs, list) else (),
        )


@lru_cache(maxsize=4096)
def secrets_of(
    function: Callable[..., Any], takes_context: bool, mask: tuple[str, ...]
) -> Secrets | None:
    """Return the secret parameters of the function; None if it has none."""
    try:
        parameters = list(signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        return None
    parameters = parameters[1:] if takes_context else parameters
    args, rest, declared = [], None, None
    for place, parameter in enumerate(parameters):
        if not is_secret(parameter.name, mask):
            continue
        if parameter.kind in _BY_POSITION:
            args.append(place)
        elif parameter.kind is Parameter.VAR_POSITIONAL:
            rest = place
        elif parameter.kind is Parameter.VAR_KEYWORD:
            declared = frozenset(each.name for each in parameters)
    if args or rest is not None or declared is not None:
        return Secrets(tuple(args), rest, declared=declared)
    return None


def without_note(meta: Any) -> Any:
    """Return the meta that the caller gave; None if there was none."""
    if not isinstance(meta, dict) or NOTE not in meta:
        return meta
    return {name: value for name, value in meta.items() if name != NOTE} or None
