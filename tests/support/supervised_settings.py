"""Settings with which a supervisor can start, but none of its processes."""

import os

from tests import settings

globals().update({name: getattr(settings, name) for name in dir(settings) if name.isupper()})

if "DBTASKS_SUPERVISED" in os.environ:
    if os.environ["TEST_WRONG"] == "exit":
        os._exit(2)
    settings.TASKS["default"]["OPTIONS"]["immediate"] = True
