"""Arguments and return values as JSON.

Owns the rule for what can be stored, the same on every database, and the text that is stored.
Never touches the database: an invalid value is refused before a row is written.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Deeper than real documents, and far below the limits of Python and of every database.
MAX_DEPTH = 64
# json.loads refuses integers of more than 4,300 digits (CVE-2020-10735).
MAX_INT_BITS = 4096

_encode = json.JSONEncoder(check_circular=False, allow_nan=False, separators=(",", ":")).encode
# A shortcut, because most calls have no keyword arguments, and many have no arguments at all.
_EMPTY: dict[type, str] = {list: "[]", dict: "{}"}


def dump(value: Any, what: str, max_bytes: int) -> tuple[Any, str]:
    """Return the value as it is read back from JSON, and its JSON text in ASCII.

    Tuples become lists, bytes become text, keys become strings, as in Django's own backends.
    Raise TypeError if the value is not JSON, is nested too deeply, or its text is longer than
    `max_bytes`. The message names the place of the error, starting with `what`.
    """
    if not value and type(value) in _EMPTY:
        return value, _EMPTY[type(value)]
    normal = _normal(value, what, 0)
    text = _encode(normal)
    if len(text) > max_bytes:
        raise TypeError(
            f"{what}: {len(text)} bytes of JSON are more than the {max_bytes} allowed. Store the "
            "data elsewhere and pass a reference, or raise OPTIONS['max_payload']."
        )
    return normal, text


def load(text: str) -> Any:
    """Return the value of the JSON text; raise ValueError if the text is not JSON."""
    # The decoder takes ten times as long for an empty value as this comparison.
    return {} if text == "{}" else [] if text == "[]" else json.loads(text)


def text(value: Any) -> str:
    """Return the JSON text of a value that is known to be plain JSON."""
    return _encode(value)


def clean(text: str, max_chars: int) -> str:
    """Return the text as every database can store it: no NUL, no lone surrogate, bounded length.

    If the text is longer than `max_chars`, its beginning and its end are kept.
    """
    text = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def _normal(value: Any, where: str, depth: int) -> Any:
    """Return the value as plain lists, dicts and scalars; raise TypeError naming `where`."""
    match value:
        case None | True | False:
            return value
        case str() | bytes():
            return _string(value, where)
        case int() | float():
            return _number(value, where)
        case Mapping() | Sequence() if depth == MAX_DEPTH:
            raise TypeError(
                f"{where[:80]}: nested more than {MAX_DEPTH} levels deep, or contains itself."
            )
        case Mapping():
            return _mapping(value, where, depth + 1)
        case Sequence() if not isinstance(value, bytearray | memoryview | range):
            return [_normal(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]
    raise TypeError(
        f"Unsupported type: {type(value)} in {where}. Tasks take and return JSON: None, bool, int, "
        "float, str, list and dict. Pass a primary key or text instead."
    )


def _number(value: float, where: str) -> float:
    """Return the number as a plain int or float; raise TypeError if JSON cannot hold it."""
    if isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise TypeError(f"{where}: an integer of {value.bit_length()} bits is too large.")
        return int(value)
    if not math.isfinite(value):
        raise TypeError(f"{where}: {value!r} is not JSON. Use None or a string instead.")
    return float(value)


def _string(value: str | bytes, where: str) -> str:
    """Return the text; raise TypeError if UTF-8 or PostgreSQL cannot hold it."""
    try:
        text = value.decode() if isinstance(value, bytes) else str.__str__(value)
        if not text.isascii():
            text.encode()
    except UnicodeError:
        raise TypeError(f"{where}: {value!r:.80} is not valid UTF-8 text.") from None
    if "\0" in text:
        raise TypeError(f"{where}: {value!r:.80} holds a NUL character. Remove it first.")
    return text


def _mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    """Return the mapping with text keys; raise TypeError for an invalid or double key."""
    result = {}
    for key, item in value.items():
        name = _key(key, where)
        if name in result:
            raise TypeError(f"{where}: the key {name!r} occurs twice once keys are text.")
        result[name] = _normal(item, f"{where}[{name!r:.40}]", depth)
    return result


def _key(key: Any, where: str) -> str:
    """Return the key as JSON writes it."""
    match key:
        case str() | bytes():
            return _string(key, f"a key of {where}")
        case None | bool() | int() | float():
            return _encode(_normal(key, f"a key of {where}", 0))
    raise TypeError(f"Unsupported type: {type(key)} as a key of {where}. Keys are text.")
