"""One database URL in, one entry of DATABASES out."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import dj_database_url

# Writers queue up for 20 seconds instead of failing, and readers never wait for them.
SQLITE = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def database(url: str) -> dict[str, Any]:
    """Return the entry of DATABASES for `url`; options in the URL win over ours."""
    entry: dict[str, Any] = dict(dj_database_url.parse(url))
    if entry["ENGINE"] == "django.db.backends.sqlite3":
        entry["OPTIONS"] = SQLITE | entry.get("OPTIONS", {})
    return entry


def sqlite_url(path: Path) -> str:
    """Return the database URL of the SQLite file at `path`, an absolute path."""
    return f"sqlite:///{quote(str(path))}"
