"""Settings with which a supervisor can start, but none of its processes."""

import os

from dbtasks.supervisor import ENVIRONMENT
from tests.settings import *  # noqa: F403
from tests.settings import TASKS

if ENVIRONMENT in os.environ:
    if os.environ["TEST_WRONG"] == "exit":
        os._exit(2)
    TASKS["default"]["OPTIONS"]["immediate"] = True
