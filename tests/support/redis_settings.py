"""Settings of a process whose runner is woken by the Redis of TEST_REDIS."""

import os

from dbtasks.contrib.redis import Redis
from tests import settings

globals().update({name: getattr(settings, name) for name in dir(settings) if name.isupper()})

settings.TASKS["default"]["OPTIONS"]["wakeup"] = Redis(os.environ["TEST_REDIS"])
