"""Settings of the storm of pushes: hints go to a service of the test's own, which calls back."""

import os

from dbtasks.contrib.http import Post
from tests.settings import (
    DATABASES,
    INSTALLED_APPS,
    MIDDLEWARE,
    SECRET_KEY,
    TASKS,
    TEMPLATES,
    USE_TZ,
)

__all__ = ["DATABASES", "INSTALLED_APPS", "MIDDLEWARE", "SECRET_KEY", "TEMPLATES", "USE_TZ"]

ROOT_URLCONF = "tests.faults.pushed_urls"
ALLOWED_HOSTS = ["127.0.0.1"]

# Which web process is called is up to the service: the port here is nobody's.
TASKS["default"]["OPTIONS"]["push"] = Post(
    os.environ["FAULTS_SERVICE"],
    body={"target": "{target}", "signature": "{signature}", "delay": "{delay}"},
    at="http://127.0.0.1:9",
    bulk=int(os.environ["FAULTS_BULK"]) or None,
    late=1,
)
