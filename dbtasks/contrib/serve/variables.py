"""The variables of Granian, in the environment.

Owns which ones ``serve`` reads, and the message about each value that is not valid. Never reads
those of the address.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...options import values

# Further variables of Granian: the argument that each sets, and how its text is read.
GRANIAN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "GRANIAN_BACKLOG": ("backlog", values.whole("backlog", 128, 10**6)),
    "GRANIAN_BACKPRESSURE": ("backpressure", values.whole("number of requests", 1, 10**6)),
    "GRANIAN_URL_PATH_PREFIX": ("url_path_prefix", str),
    "GRANIAN_WORKERS_LIFETIME": ("workers_lifetime", values.whole("lifetime", 60, 10**9)),
}
FILES = {"GRANIAN_SSL_CERTIFICATE": "ssl_cert", "GRANIAN_SSL_KEYFILE": "ssl_key"}


def arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return further arguments of Granian from the environment."""
    return {
        argument: read(environment, parse, name)
        for name, (argument, parse) in GRANIAN.items()
        if environment.get(name)
    }


def read(environment: Mapping[str, str], parse: Callable[[str], Any], *names: str) -> Any:
    """Return the value of the first variable that is not empty, None without one.

    Raise ValueError if it is not valid.
    """
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return None
    try:
        return parse(environment[name])
    except ArgumentTypeError as error:
        raise ValueError(f"{name} in the environment: {error}") from None


def files(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the arguments of Granian that are files; raise ValueError if one does not exist."""
    found = {key: environment[key] for key in FILES if environment.get(key)}
    for key, path in found.items():
        if not Path(path).is_file():
            raise ValueError(f"{key} in the environment: there is no file {path!r}.")
    return {FILES[key]: path for key, path in found.items()}
