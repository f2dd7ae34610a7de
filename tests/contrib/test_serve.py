"""``manage.py serve``: real servers, over HTTP, for a project made by ``startproject``."""

import http.client
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock, skipUnless

from django.core.management import CommandError, call_command
from django.test import SimpleTestCase, TransactionTestCase, override_settings, tag

from dbtasks.contrib.serve import address
from dbtasks.contrib.serve.management.commands import serve
from dbtasks.contrib.serve.watch import CodeFilter
from dbtasks.contrib.serve.web import WebOptions

from ..support.processes import MANAGE, ROOT, Child, ProcessTestCase
from ..support.sites import free_port
from ..support.waiting import MAX_WAIT, until

SETTINGS = """
from mysite.settings import *

INSTALLED_APPS += ["dbtasks", "dbtasks.contrib.serve", "shop"]
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}}
MEDIA_ROOT = BASE_DIR / "media"
STATIC_ROOT = BASE_DIR / "collected"
ROOT_URLCONF = "shop.urls"
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE"}
"""
SHOP = {
    "__init__.py": "",
    "prices.py": "PRICE = 0\n",
    "models.py": "LABEL = 'label 0'\n",
    "templates/page.html": "page 0",
    "tasks.py": """
import time
from pathlib import Path

from django.tasks import task

from shop.prices import PRICE


@task
def price():
    return PRICE


@task
def wait():
    Path("started").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return PRICE
""",
    "views.py": """
import os
import time
from pathlib import Path

from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.tasks import default_task_backend

from shop import tasks
from shop.models import LABEL

TEXT = "view 0"


def text(request):
    return HttpResponse(TEXT)


def label(request):
    return HttpResponse(LABEL)


def page(request):
    return render(request, "page.html")


def pids(request):
    return JsonResponse({"worker": os.getpid(), "server": os.getppid()})


def slow(request):
    Path("asked").touch()
    while not Path("answer").exists():
        time.sleep(0.01)
    return HttpResponse("at last")


def enqueue(request, name):
    return HttpResponse(getattr(tasks, name).enqueue().id)


def result(request, id):
    found = default_task_backend.get_result(id)
    value = found.return_value if found.status == "SUCCESSFUL" else None
    return JsonResponse({"status": found.status, "value": value, "attempts": found.attempts})
""",
    "urls.py": """
from django.contrib import admin
from django.urls import path

from shop import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("text", views.text),
    path("label", views.label),
    path("page", views.page),
    path("pids", views.pids),
    path("slow", views.slow),
    path("enqueue/<name>", views.enqueue),
    path("result/<id>", views.result),
]
""",
}
ASGI = """
from shop_settings import *

WSGI_APPLICATION = None
ASGI_APPLICATION = "mysite.asgi.application"
"""


# As it is, because tests replace it.
IN_CONTAINER = address.in_container


def web_options(where: address.Address, **values: Any) -> WebOptions:
    """Return options of a web server at that address."""
    return WebOptions(where, "wsgi", 1, 1, 1, True, False, False, "info", **values)


@tag("site")
class SiteTestCase(ProcessTestCase):
    """A project of its own, with a database of its own in its folder."""

    settings = "shop_settings"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.project = Path(folder.name)
        cls.run_in_project("-m", "django", "startproject", "mysite", ".")
        (cls.project / "shop_settings.py").write_text(SETTINGS)
        (cls.project / "asgi_settings.py").write_text(ASGI)
        (cls.project / "shop" / "templates").mkdir(parents=True)
        for name, text in SHOP.items():
            (cls.project / "shop" / name).write_text(text)
        cls.run_in_project("manage.py", "migrate", "-v", "0")

    def setUp(self) -> None:
        super().setUp()
        shutil.copytree(self.project, self.folder, dirs_exist_ok=True)
        self.port = free_port()

    @classmethod
    def run_in_project(cls, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=cls.project,
            env=os.environ | cls.environment(),
            check=True,
            capture_output=True,
        )

    @classmethod
    def environment(cls) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": cls.settings,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def write(self, name: str, text: str) -> None:
        """Save a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def serve(
        self, *arguments: Any, before: tuple[str, ...] = (), stdin: Any = None, **environment: str
    ) -> Child:
        """Start the site on the test's port; return it once it answers."""
        self.child = child = Child(
            *("serve", self.port, *arguments),
            environment=self.environment() | environment,
            program=(*before, sys.executable, "manage.py"),
            folder=self.folder,
            stdin=stdin,
        )
        self.addCleanup(child.kill)
        try:
            until(lambda: self.get("text") is not None, "The site")
        except AssertionError as error:
            raise AssertionError(f"{error} It said: {child.said}") from None
        return child

    def get(self, path: str, connection: Any = None) -> str | None:
        """Return what the site answers, None while nobody listens."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/{path}")
            return str(connection.getresponse().read().decode())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def has_run(self, name: str) -> Any:
        """Return what a new call of that task returns; None if half-written code failed."""
        id = None
        while id is None:
            id = self.get(f"enqueue/{name}")
        return self.result(id, "SUCCESSFUL", "FAILED")["value"]

    def result(self, id: str | None, *statuses: str) -> dict[str, Any]:
        """Return the result of that id, once it is SUCCESSFUL, or has one of these statuses."""
        wanted = statuses or ("SUCCESSFUL",)
        found: dict[str, Any] = {}

        def is_there() -> bool:
            nonlocal found
            found = json.loads(self.get(f"result/{id}") or "{}")
            return found.get("status") in wanted

        try:
            until(is_there, f"{' or '.join(wanted)} of {id}")
        except AssertionError as error:
            raise AssertionError(f"{error} It is {found}. {self.child.said[-4000:]}") from None
        return found

    def pids(self) -> dict[str, int]:
        """Return the processes of the web server."""
        return dict(json.loads(self.get("pids") or "{}"))

    def is_alive(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def family(self, child: Child) -> list[int]:
        """Return the pids of all processes that were started for that command, itself aside."""
        found, left = [], [child.process.pid]
        while left:
            pid = left.pop()
            try:
                tasks = Path(f"/proc/{pid}/task").iterdir()
                texts = [(task / "children").read_text() for task in tasks]
            except OSError:
                continue
            left += (children := [int(word) for text in texts for word in text.split()])
            found += children
        return found


class SiteTests(SiteTestCase):
    """A site as it runs for visitors."""

    def test_the_admin_with_its_css_and_a_task(self):
        """As under runserver, and tasks run; nobody is left after SIGTERM."""
        child = self.serve("-k", "-w", "2")
        family = self.family(child)

        self.assertIn("Django administration", self.get("admin/login/") or "")
        self.assertIn("--primary", self.get("static/admin/css/base.css") or "")
        self.assertEqual(0, self.has_run("price"))
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertGreaterEqual(len(family), 4)
        until(lambda: not any(map(self.is_alive, family)), "The end of all processes")

    def test_the_first_signal_lets_what_is_in_hand_end(self):
        """A request and a task, side by side."""
        child = self.serve("-k", "--grace", "20")
        id = self.get("enqueue/wait")
        answers: list[str | None] = []
        thread = threading.Thread(target=lambda: answers.append(self.get("slow")))
        thread.start()
        for name in ("asked", "started"):
            until((self.folder / name).exists, name)
        child.signal(signal.SIGINT)
        child.wait_for("SIGINT: waiting up to 20.0 s for 1 running task")
        for name in ("answer", "go"):
            (self.folder / name).touch()
        thread.join(MAX_WAIT)

        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(["at last"], answers)
        self.serve()
        self.assertEqual(("SUCCESSFUL", 1), self.status(id))

    def test_the_second_signal_ends_it_now(self):
        """The task is requeued, and the next runner starts it again."""
        child = self.serve("-k")
        id = self.get("enqueue/wait")
        until((self.folder / "started").exists, "The task")
        family = self.family(child)
        child.signal(signal.SIGTERM)
        child.wait_for("SIGTERM: waiting up to 30.0 s for 1 running task")
        child.signal(signal.SIGINT)
        child.wait_for("leave now")

        self.assertEqual(128 + signal.SIGINT, child.end(), child.said)
        until(lambda: not any(map(self.is_alive, family)), "The end of all processes")
        (self.folder / "go").touch()
        self.serve("-k")
        self.assertEqual(2, self.result(id)["attempts"])

    def test_a_signal_that_comes_twice_at_once_counts_once(self):
        """GNU timeout sends it to its process and to the whole group."""
        child = self.serve("-k", before=("timeout", "600"))
        id = self.get("enqueue/wait")
        answers: list[str | None] = []
        thread = threading.Thread(target=lambda: answers.append(self.get("slow")))
        thread.start()
        for name in ("asked", "started"):
            until((self.folder / name).exists, name)
        child.signal(signal.SIGTERM)
        child.wait_for("SIGTERM: waiting up to 30.0 s for 1 running task")
        for name in ("answer", "go"):
            (self.folder / name).touch()
        thread.join(MAX_WAIT)

        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(["at last"], answers)
        self.serve()
        self.assertEqual(("SUCCESSFUL", 1), self.status(id))

    def test_who_is_killed_is_replaced(self):
        """A worker, the web server, the runner: the site goes on, and the task starts again."""
        child = self.serve("-k")
        before = self.pids()
        os.kill(before["worker"], signal.SIGKILL)
        until(lambda: self.pids().get("worker", before["worker"]) != before["worker"], "One")
        worker = self.pids()["worker"]
        os.kill(before["server"], signal.SIGKILL)
        until(lambda: self.pids().get("server", before["server"]) != before["server"], "One")
        self.assertFalse(self.is_alive(worker))

        id = self.get("enqueue/wait")
        until((self.folder / "started").exists, "The task")
        [runner] = {*self.family(child)} - {*self.family_of(self.pids()["server"])}
        os.kill(runner, signal.SIGKILL)
        (self.folder / "go").touch()

        self.assertEqual(2, self.result(id)["attempts"])
        self.assertIn("The task runner (pid", child.stderr)
        self.assertIn("was killed by SIGKILL; another starts now.", child.stderr)

    @skipUnless(sys.platform == "linux", "macOS is simulated on Linux")
    def test_no_worker_outlives_its_server_on_macos(self):
        """Nothing there kills it with its parent, so it looks."""
        path = os.pathsep.join([str(ROOT / "tests" / "support" / "macos"), str(ROOT)])
        self.serve(PYTHONPATH=path)
        before = self.pids()
        os.kill(before["server"], signal.SIGKILL)

        until(lambda: not self.is_alive(before["worker"]), "The end of the worker")
        until(lambda: self.pids().get("server", before["server"]) != before["server"], "Another")

    def test_nobody_outlives_the_supervisor(self):
        """Though it was killed, and could stop nobody."""
        child = self.serve("-k", "-w", "2")
        family = self.family(child)
        child.signal(signal.SIGKILL)

        until(lambda: not any(map(self.is_alive, family)), "The end of all processes")
        self.assertGreaterEqual(len(family), 4)

    def test_serves_an_asgi_site(self):
        """Where ASGI_APPLICATION is set and WSGI_APPLICATION is not; static files too."""
        child = self.serve(DJANGO_SETTINGS_MODULE="asgi_settings")

        self.assertIn("(ASGI, 1 worker)", child.stderr)
        self.assertIn("--primary", self.get("static/admin/css/base.css") or "")

    def test_a_socket_in_a_file(self):
        """As proxies on the same machine like it; one left behind is no hindrance."""
        path = self.folder / "web.sock"
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
        child = Child(
            *("serve", "--uds", path, "--access-log"),
            environment=self.environment(),
            program=(sys.executable, "manage.py"),
            folder=self.folder,
        )
        self.addCleanup(child.kill)

        def answer() -> str | None:
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            try:
                connection.sock.connect(str(path))
            except OSError:
                return None
            return self.get("text", connection)

        until(answer, "The site")
        self.assertEqual("view 0", answer())
        child.wait_for('"GET /text HTTP/1.1" 200')

    def family_of(self, pid: int) -> list[int]:
        """Return a process and its children."""
        text = "".join(f.read_text() for f in Path(f"/proc/{pid}/task").glob("*/children"))
        return [pid, *map(int, text.split())]

    def status(self, id: str | None) -> tuple[str, int]:
        """Return status and attempts of a result."""
        found = json.loads(self.get(f"result/{id}") or "{}")
        return found["status"], found["attempts"]


class ReloadTests(SiteTestCase):
    """A site whose code is being written."""

    def becomes(self, path: str, text: str) -> float:
        """Return the seconds until the site answers that."""
        began = time.monotonic()
        until(lambda: self.get(path) == text, f"{text!r} of {path}")
        return time.monotonic() - began

    def reloads(self, child: Child) -> int:
        return child.stderr.count("has changed; the new code takes over")

    def test_twenty_edits_in_a_row(self):
        """Views and tasks in turn: each edit is served, and run, every time."""
        self.serve("-k", "-r")

        for number in range(1, 21):
            if number % 2:
                self.write("shop/views.py", SHOP["views.py"].replace("view 0", f"view {number}"))
                self.becomes("text", f"view {number}")
            else:
                self.write("shop/prices.py", f"PRICE = {number}\n")
                until(lambda n=number: self.has_run("price") == n, f"Price {number}")

    def test_each_kind_of_code(self):
        """A module of models, a template, tasks, and a module that is new."""
        self.serve("-k", "-r")

        self.write("shop/models.py", "LABEL = 'label 1'\n")
        self.becomes("label", "label 1")
        self.write("shop/templates/page.html", "page 1")
        self.becomes("page", "page 1")
        self.write("shop/rebate.py", "REBATE = 5\n")
        tasks = SHOP["tasks.py"].replace("return PRICE", "return PRICE - REBATE")
        self.write("shop/tasks.py", f"from shop.rebate import REBATE\n{tasks}")
        until(lambda: self.has_run("price") == -5, "The rebate")
        self.write("shop/rebate.py", "REBATE = 6\n")
        until(lambda: self.has_run("price") == -6, "The new rebate")

    def test_a_mistake_is_shown_and_heals(self):
        """In a view, and in a helper of a task; what was enqueued runs afterwards."""
        child = self.serve("-k", "-r")
        self.write("shop/views.py", "def text(:\n")
        child.wait_for("SyntaxError")
        child.wait_for("it starts again when a file changes")
        self.write("shop/views.py", SHOP["views.py"].replace("view 0", "view 1"))
        self.becomes("text", "view 1")

        self.write("shop/prices.py", "PRICE = nothing\n")
        child.wait_for("name 'nothing' is not defined")
        self.write("shop/prices.py", "PRICE = 3\n")
        self.becomes("text", "view 1")
        until(lambda: self.has_run("price") == 3, "The price")

    def test_a_database_that_comes_late(self):
        """The runner is started again until it is there, with and without reload."""
        (self.folder / "db.sqlite3").unlink()
        child = self.serve("-k", "-r")
        child.wait_for("The task runner waits, and tries again every 3 s: The database 'default'")
        other = self.start_late("-k")
        other.wait_for("The task runner waits, and tries again every 3 s")
        other.kill()
        refused = self.start_late("-k", "--wait", "0")
        self.assertEqual(1, refused.end(), refused.said)
        self.assertIn("Run 'manage.py migrate' first.", refused.said.splitlines()[-1])
        done = subprocess.run(
            [sys.executable, "manage.py", "migrate", "-v", "0"],
            cwd=self.folder,
            env=os.environ | self.environment(),
        )
        self.assertEqual(0, done.returncode)

        self.assertEqual(0, self.has_run("price"))
        self.assertEqual(1, child.said.count("tries again"))

    def start_late(self, *arguments: Any) -> Child:
        """Start another site on another port; do not wait for it."""
        child = Child(
            *("serve", free_port(), *arguments),
            environment=self.environment(),
            program=(sys.executable, "manage.py"),
            folder=self.folder,
        )
        self.addCleanup(child.kill)
        return child

    def test_breakpoints_in_a_view_and_in_a_task(self):
        """They talk with the terminal at which the site was started."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        views = SHOP["views.py"].replace("HttpResponse(LABEL)", "stop()")
        stop = "\n\ndef stop():\n    breakpoint()\n    return HttpResponse(LABEL)\n"
        self.write("shop/views.py", views + stop)
        price = "def price():\n"
        self.write("shop/tasks.py", SHOP["tasks.py"].replace(price, f"{price}    breakpoint()\n"))
        child = self.serve("-k", "-r", stdin=theirs)
        os.close(theirs)
        for path, line in (
            ("label", "-> return HttpResponse(LABEL)"),
            ("enqueue/price", "-> return"),
        ):
            answers: list[str | None] = []
            asking = threading.Thread(target=lambda p=path, a=answers: a.append(self.get(p)))
            asking.start()
            child.wait_for(line)
            os.write(ours, f"print('at', {path!r})\nc\n".encode())
            child.wait_for(f"at {path}")
            asking.join(MAX_WAIT)
            self.assertTrue(answers[0], child.said)

        self.assertEqual(0, self.result(answers[0])["value"])
        self.assertNotIn("BdbQuit", child.said)

    def test_a_reload_is_one_line(self):
        """It says which file has changed; more is said if a task still runs."""
        child = self.serve("-k", "-r")
        child.wait_for("started, pid")
        before = len(child.stderr.splitlines())
        self.write("shop/prices.py", "PRICE = 5\n")
        until(lambda: self.has_run("price") == 5, "The price")

        lines = [line for line in child.stderr.splitlines()[before:] if " ok " not in line]
        self.assertEqual(["shop/prices.py has changed; the new code takes over."], lines)

    def test_a_running_task_is_not_lost(self):
        """It ends within the grace, by the code with which it began."""
        child = self.serve("-k", "-r")
        id = self.get("enqueue/wait")
        until((self.folder / "started").exists, "The task")
        self.write("shop/prices.py", "PRICE = 4\n")
        child.wait_for("prices.py has changed: waiting up to 30.0 s for 1 running task")
        (self.folder / "go").touch()

        self.assertEqual((0, 1), (self.result(id)["value"], self.result(id)["attempts"]))
        until(lambda: self.has_run("price") == 4, "The price")

    def test_what_a_site_writes_is_no_code(self):
        """Its database, logs, media, collected files, and what others install."""
        child = self.serve("-k", "-r")
        written = [
            *("db.sqlite3-journal", "db.sqlite3-wal", "debug.log", "media/upload.py", "notes.txt"),
            *("collected/page.html", "node_modules/some.py", ".git/hook.py", "env/pyvenv.cfg"),
            *("env/lib/module.py", "shop/__pycache__/views.py", "shop/templates/.page.html.swp"),
        ]
        for name in written:
            self.write(name, "changed")
            self.assertEqual(0, self.has_run("price"))
        # Whatever was seen before this is known by now.
        self.write("shop/prices.py", "PRICE = 1\n")
        until(lambda: self.has_run("price") == 1, "The price")

        self.assertEqual(1, self.reloads(child), child.stderr)


@tag("processes")
class RefusalTests(TransactionTestCase):
    """What cannot be served, in one sentence."""

    def test_refusals_are_sentences(self):
        """What is wrong, and how to mend it."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            for arguments, text in (
                ([str(port)], "Address already in use. Choose another address or port."),
                (
                    ["host:port"],
                    "'host:port' is not a valid address. Use PORT or HOST:PORT, such as 0:8000.",
                ),
                (["70000"], "'70000' is not a valid port. Use a number from 1 to 65535."),
                (["-p", "0"], "'0' is not a valid port."),
                (["-r", "9000"], "There is no folder '9000' to watch. Write an address before"),
                (["-k", "9000"], "Write an address before -k: serve 9000 -k"),
                (["--uds", __file__], "exists and is not a socket."),
                (["--uds", "/nowhere/web.sock"], "Cannot create a socket in /nowhere."),
            ):
                with self.subTest(arguments), self.assertRaisesMessage(CommandError, text):
                    call_command("serve", *arguments)

    def test_variables_that_are_not_valid_are_named(self):
        """Granian's own, and WEB_CONCURRENCY."""
        for name, value, text in (
            ("GRANIAN_WORKERS", "abc", "'abc' is not a valid number of workers."),
            ("WEB_CONCURRENCY", "auto", "'auto' is not a valid number of workers."),
            ("WEB_CONCURRENCY", "0", "'0' is not a valid number of workers."),
            ("WEB_CONCURRENCY", "-2", "'-2' is not a valid number of workers."),
            ("GRANIAN_BLOCKING_THREADS", "0", "'0' is not a valid number of threads."),
            ("GRANIAN_BACKLOG", "many", "'many' is not a valid backlog."),
            ("GRANIAN_LOG_ACCESS_ENABLED", "maybe", "'maybe' is not valid."),
            ("GRANIAN_SSL_CERTIFICATE", "/nowhere", "there is no file '/nowhere'."),
            ("PORT", "", "'' is not a valid port."),
        ):
            with (
                self.subTest(**{name: value}),
                mock.patch.dict(os.environ, {name: value}),
                self.assertRaisesMessage(CommandError, f"{name} in the environment: {text}"),
            ):
                call_command("serve")

    def test_the_interface_is_asgi_if_that_is_set(self):
        """Also beside WSGI_APPLICATION, which every project has."""
        for settings, interface in (
            ({"ASGI_APPLICATION": "a.b", "WSGI_APPLICATION": "c.d"}, "asgi"),
            ({"WSGI_APPLICATION": "c.d"}, "wsgi"),
            ({"WSGI_APPLICATION": None}, "wsgi"),
        ):
            with self.subTest(settings), override_settings(**settings):
                self.assertEqual(interface, serve._interface("auto"))

    def test_says_that_granian_is_missing(self):
        """The sentence says what to install."""
        with (
            mock.patch.object(serve, "find_spec", return_value=None),
            self.assertRaisesMessage(CommandError, "Run: pip install 'dbtasks[serve]'"),
        ):
            call_command("serve")

    def test_help_without_granian(self):
        """The command can be looked at before anything is installed."""
        code = "import sys; sys.modules['granian'] = sys.modules['watchfiles'] = None; "
        script = f"{code}sys.argv[1:] = ['serve', '--help']; exec(open(r'{MANAGE[1]}').read())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("GRANIAN_WORKERS", done.stdout)


class AddressTests(SimpleTestCase):
    """How an address may be written."""

    def setUp(self) -> None:
        outside = mock.patch.object(address, "in_container", return_value=False)
        self.in_container = self.enterContext(outside)
        # Names of hosts are resolved without a network.
        hosts = {"example.org": ["192.0.2.1"], "six.example.org": ["2001:db8::1", "192.0.2.6"]}
        hosts["localhost"] = ["::1", "127.0.0.1"]
        self.enterContext(mock.patch.object(address.socket, "getaddrinfo", self.resolver(hosts)))

    def resolver(self, hosts: dict[str, list[str]]) -> Any:
        def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
            if host not in hosts:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(family[":" in ip], 1, 6, "", (ip, 0)) for ip in hosts[host]]

        return resolve

    def test_words_and_environment(self):
        """Flags count more than the environment, Granian's more than PORT."""
        for words, environment, wanted in (
            ("", {}, "http://127.0.0.1:8000/"),
            ("9000", {}, "http://127.0.0.1:9000/"),
            ("0:9000", {}, "http://0.0.0.0:9000/"),
            ("[::1]:9000", {}, "http://[::1]:9000/"),
            ("::1", {}, "http://[::1]:8000/"),
            ("[::1]", {}, "http://[::1]:8000/"),
            (":9000", {}, "http://127.0.0.1:9000/"),
            ("0.0.0.0", {}, "http://0.0.0.0:8000/"),
            ("localhost:8000", {}, "http://127.0.0.1:8000/"),
            ("localhost", {"GRANIAN_PORT": "7001"}, "http://127.0.0.1:7001/"),
            ("six.example.org:80", {}, "http://192.0.2.6:80/"),
            ("example.org:80", {}, "http://192.0.2.1:80/"),
            ("9000", {"PORT": "7000"}, "http://127.0.0.1:9000/"),
            ("", {"PORT": "7000"}, "http://0.0.0.0:7000/"),
            ("", {"PORT": "7000", "GRANIAN_PORT": "7001"}, "http://127.0.0.1:7001/"),
            ("", {"GRANIAN_HOST": "::", "GRANIAN_PORT": "7001"}, "http://[::]:7001/"),
            ("9000", {"GRANIAN_HOST": "0.0.0.0"}, "http://0.0.0.0:9000/"),
            ("", {"GRANIAN_UDS": "/run/web.sock"}, "unix:/run/web.sock"),
        ):
            with self.subTest(words, **environment):
                self.assertEqual(wanted, str(address.parse(words, environment)))

    def test_in_a_container(self):
        """Others cannot reach its loopback, so that is not the default."""
        self.in_container.return_value = True
        for words, environment, wanted in (
            ("", {}, "http://0.0.0.0:8000/"),
            ("9000", {}, "http://0.0.0.0:9000/"),
            ("", {"GRANIAN_PORT": "7001"}, "http://0.0.0.0:7001/"),
            ("127.0.0.1:9000", {}, "http://127.0.0.1:9000/"),
            ("", {"GRANIAN_HOST": "127.0.0.1"}, "http://127.0.0.1:8000/"),
        ):
            with self.subTest(words, **environment):
                self.assertEqual(wanted, str(address.parse(words, environment)))

    def test_what_is_a_container(self):
        """By the files and variables of Docker, Podman and Kubernetes."""
        is_container = IN_CONTAINER
        with mock.patch.object(address, "CONTAINER_FILES", ("/nowhere",)):
            self.assertFalse(is_container({"container": ""}))
            self.assertTrue(is_container({"container": "podman"}))
            self.assertTrue(is_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}))
        with mock.patch.object(address, "CONTAINER_FILES", (__file__,)):
            self.assertTrue(is_container({}))

    def test_values_that_are_not_valid(self):
        """The sentence names the variable, or the argument."""
        for words, environment, text in (
            ("host:port", {}, "'host:port' is not a valid address."),
            ("http://localhost", {}, "'http://localhost' is not a valid address."),
            ("nowhere:80", {}, "The host 'nowhere' cannot be found: Name or service not known."),
            ("", {"PORT": ""}, "PORT in the environment: '' is not a valid port."),
            ("", {"PORT": "http"}, "PORT in the environment: 'http' is not a valid port."),
            ("", {"GRANIAN_PORT": "0"}, "GRANIAN_PORT in the environment: '0' is not a valid"),
        ):
            with self.subTest(words, **environment), self.assertRaisesMessage(ValueError, text):
                address.parse(words, environment)

    def test_the_banner_says_where(self):
        """With the scheme, and a warning if nobody outside of the container can come."""
        web = web_options(address.Address("127.0.0.1", 8000), files={"ssl_cert": "x"})
        options = {"tasks": None}
        with mock.patch.object(address, "in_container", return_value=False):
            lines = serve._banner(web, options, None).splitlines()
        self.assertEqual("https://127.0.0.1:8000/ (WSGI, 1 worker)", lines[0])
        self.assertEqual(2, len(lines))
        with mock.patch.object(address, "in_container", return_value=True):
            self.assertIn("Only this container can reach", serve._banner(web, options, None))
            web = web_options(address.Address("0.0.0.0", 8000))
            self.assertNotIn("Only this", serve._banner(web, options, None))

    def test_a_filter_for_a_folder_in_an_environment(self):
        """What is asked for by name is watched, wherever it is."""
        folder = Path("/srv/.hidden/site-packages/mine")
        is_code = CodeFilter([folder], [])

        self.assertTrue(is_code(mock.ANY, f"{folder}/module.py"))
        self.assertFalse(is_code(mock.ANY, f"{folder}/.git/module.py"))


class RunnerFlagsTests(SimpleTestCase):
    """The flags of the runner are those of its own command."""

    def test_queues_are_passed_on(self):
        """Named ones, all of them, and those to leave out."""
        parser = serve.Command().create_parser("manage.py", "serve")
        for words, expected in (
            (["-q", "default,mail", "-x", "mail"], "-q default -q mail -x mail"),
            (["--queue", "*"], "-q *"),
            ([], ""),
        ):
            with self.subTest(words):
                options = vars(parser.parse_args(["-k", "2", *words]))
                command = serve._runner_command(options)
                passed = command[command.index("-v") + 2 :]

                self.assertEqual(expected.split(), passed)
