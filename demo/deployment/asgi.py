"""The ASGI application of mysite, with a runner in one of the server's processes."""

import os

from django.core.asgi import get_asgi_application

from dbtasks.contrib.asgi import with_runner

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = with_runner(get_asgi_application())
