"""A site of a user, served by the servers that people run, with the files of demo/deployment."""

import json
import os
import re
import shutil
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from dbtasks.models import ScheduledTask

from ..tasks import wait_for_file
from .processes import ROOT, Child, ProcessTestCase, database_url
from .waiting import until

try:
    import pyuwsgi
except ImportError:
    # It has no wheels for free-threaded Python.
    pyuwsgi = None

# A program that is uWSGI.
UWSGI = "from pyuwsgi import run; run()"

DEPLOYMENT = ROOT / "demo" / "deployment"
ADDRESS = "127.0.0.1:8000"

FILES = {
    "__init__.py": "",
    "settings.py": """
from tests.settings import *
from tests import settings

ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "mysite.urls"
INSTALLED_APPS, DATABASES, TASKS = settings.INSTALLED_APPS, settings.DATABASES, settings.TASKS
SECRET_KEY, USE_TZ = settings.SECRET_KEY, True
""",
    # Pages that say which process they come from, enqueue a task, and take their time.
    "urls.py": """
import os
from pathlib import Path

from django.http import JsonResponse
from django.urls import path

from tests.support.waiting import until
from tests.tasks import add


def where(request):
    return JsonResponse({"pid": os.getpid()})


def enqueue(request, n):
    return JsonResponse({"id": add.enqueue(n, 1).id})


def wait(request):
    Path("asked").touch()
    until(Path("answer").exists)
    return JsonResponse({})


urlpatterns = [path("", where), path("enqueue/<int:n>", enqueue), path("wait", wait)]
""",
    "wsgi.py": """
import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = get_wsgi_application()
""",
}


def free_port() -> int:
    """Return a port that nobody listened on just now."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_open(address: str) -> bool:
    """Tell whether somebody takes connections at that address."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except ConnectionError:
        return False
    return True


class SiteTestCase(ProcessTestCase):
    """Serves the site ``mysite``, whose queue is the test's database."""

    def setUp(self) -> None:
        super().setUp()
        self.address = f"127.0.0.1:{free_port()}"
        package = self.folder / "mysite"
        package.mkdir()
        for name, text in FILES.items():
            (package / name).write_text(text)
        shutil.copy(DEPLOYMENT / "asgi.py", package)
        for name in ("uwsgi.ini", "mule.py", "gunicorn.conf.py"):
            text = (DEPLOYMENT / name).read_text()
            (self.folder / name).write_text(text.replace(ADDRESS, self.address))

    def serve(self, *program: Any, **environment: str) -> Child:
        """Start that server in the folder of the site."""
        child = Child(
            program=program,
            environment={
                "TEST_DATABASE": database_url(),
                "DJANGO_SETTINGS_MODULE": "",
                "DBTASKS_LOCK": str(self.folder / "lock"),
                # Where everything is also for a server that starts itself anew.
                "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT), *sys.path]),
                **environment,
            },
            folder=self.folder,
        )
        self.addCleanup(child.kill)
        return child

    def get(self, path: str = "") -> Any:
        """Return what the site answers, once it does."""
        until(lambda: is_open(self.address), "The server")
        with urlopen(f"http://{self.address}/{path}", timeout=10) as response:
            return json.load(response)

    def make_busy(self) -> Any:
        """Return the result of a task that runs until the file ``go`` is there."""
        result = wait_for_file.enqueue(str(self.folder))
        until((self.folder / "started").exists, "The task")
        return result

    def wait_for_status(self, result: Any, status: str) -> None:
        """Block until the task has that status."""
        rows = ScheduledTask.objects.filter(id=result.id, status=status)
        until(rows.exists, f"Status {status}")

    def runs_in(self, child: Child, nth: int = 1) -> int:
        """Return the pid of the process that has the child's nth runner, once it is ready."""
        try:
            until(lambda: len(pids(child)) >= nth, f"Runner {nth}")
        except AssertionError as error:
            raise AssertionError(f"{error} It said: {child.said}") from None
        return pids(child)[nth - 1]


def pids(child: Child) -> list[int]:
    """Return where runners that the child has told of were ready, in that order."""
    return [int(pid) for pid in re.findall(r"^Worker .+, pid (\d+)\.$", child.said, re.MULTILINE)]


def sockets(pid: int) -> set[str]:
    """Return the sockets that the process has open."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:  # closed since it was listed
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
