"""Settings of the project that the backends of Django's tasks are measured in.

Owns what is the same for all of them. Never holds a backend's own: they come from its adapter.
"""

import json
import os
from urllib.parse import unquote, urlsplit

_own = json.loads(os.environ["BENCH_DJANGO"])
_url = urlsplit(os.environ["BENCH_URL"])

SECRET_KEY = "dbtasks-benchmark-key-that-protects-nothing"
DEBUG = False
USE_TZ = True
INSTALLED_APPS = _own["INSTALLED_APPS"]
TASKS = _own["TASKS"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(_url.path[1:]),
        "USER": unquote(_url.username or ""),
        "PASSWORD": unquote(_url.password or ""),
        "HOST": _url.hostname or "",
        "PORT": str(_url.port or ""),
        "CONN_MAX_AGE": _own.get("CONN_MAX_AGE", 0),
        "OPTIONS": _own.get("CONN_OPTIONS", {}),
    }
}
