"""Settings of the tests; TEST_DATABASE is the URL of the database server to test on."""

import json
import os
from pathlib import Path
from typing import Any

from dbtasks import Periodic
from demo.databases import database, sqlite_url
from demo.settings import INSTALLED_APPS as DEMO_APPS
from demo.settings import MIDDLEWARE, TEMPLATES

__all__ = ["MIDDLEWARE", "TEMPLATES"]

# Set where systemd runs the tests. A runner that it starts waits for its database.
os.environ.pop("INVOCATION_ID", None)

if os.environ.get("TEST_DRIVER") == "pymysql":
    import pymysql

    # What Django asks mysqlclient for.
    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()

# Files, because threads and processes cannot share a database in memory.
FILES = Path(__file__).resolve().parent / ".db"
FILES.mkdir(exist_ok=True)


def test_database(suffix: str = "") -> dict[str, Any]:
    """Return the entry of DATABASES whose test database has `suffix` in its name."""
    entry = database(os.environ.get("TEST_DATABASE") or sqlite_url(FILES / "dbtasks.sqlite3"))
    # What a URL cannot carry, such as {"server_side_binding": true}.
    entry.setdefault("OPTIONS", {}).update(json.loads(os.environ.get("TEST_OPTIONS", "{}")))
    # A pooler that shares sessions has none.
    entry["DISABLE_SERVER_SIDE_CURSORS"] = os.environ.get("TEST_SERVER_SIDE_CURSORS") == "off"
    name = Path(entry["NAME"])
    if entry["ENGINE"] == "django.db.backends.sqlite3":
        # `test --parallel` copies the file alone: nothing may be left in the log beside it.
        if "TEST_SQLITE_TIMEOUT" in os.environ:
            entry["OPTIONS"]["timeout"] = float(os.environ["TEST_SQLITE_TIMEOUT"])
        entry["OPTIONS"]["init_command"] += " PRAGMA wal_autocheckpoint=1;"
    entry["TEST"] = {"NAME": str(name.with_name(f"test_{name.stem}{suffix}{name.suffix}"))}
    return entry


DATABASES = {"default": test_database(), "other": test_database("_other")}

SECRET_KEY = "dbtasks-test-key-that-protects-nothing"
INSTALLED_APPS = [*(app for app in DEMO_APPS if app != "demo"), "tests"]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = True
TIME_ZONE = "UTC"

TASKS = {
    "default": {
        "BACKEND": "dbtasks.backend.DatabaseBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {
            "retain": os.environ.get("TEST_RETAIN", "7d"),
            # Of a runner in a process of its own: {path: {"spec": …, …}}.
            "periodic": {
                path: Periodic(**values)
                for path, values in json.loads(os.environ.get("TEST_PERIODIC", "{}")).items()
            },
            "worker_timeout": float(os.environ.get("TEST_WORKER_TIMEOUT", "20")),
        },
    },
}
