"""What may be shown of a URL that stands in settings.

Owns the decision which part of it is certainly no secret. Never raises, whatever the URL is.
"""

import re
from typing import Any

# A URL with a slash, "?" or "#" inside of its password looks like one whose host is the user. So
# nothing is shown if there is an "@" behind the host.
_CERTAIN = re.compile(
    r"([a-z]{2,10})://(?:[^/?#\s]*@)?"
    r"((?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)"
    r"(?:[/?#][^@]*)?"
)
HIDDEN = "…"


def shown(url: Any) -> str:
    """Return scheme, host and port of the URL if it is certain which they are, else "…"."""
    found = _CERTAIN.fullmatch(url) if isinstance(url, str) else None
    return HIDDEN if found is None else f"{found[1]}://{found[2]}"
