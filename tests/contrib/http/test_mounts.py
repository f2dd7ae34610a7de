"""Where endpoints() are mounted: arguments, URLs for hints, checks."""

import re
import subprocess
import sys
from typing import Any

from django.conf import settings
from django.conf.urls.i18n import i18n_patterns
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings
from django.urls import path, set_script_prefix
from django.utils import translation

from dbtasks.contrib.aws import SQS
from dbtasks.contrib.http import Bearer, Post, endpoints, target
from dbtasks.push import Hint

from ...support.hints import Recorder, with_push
from ...support.mounts import ID, TOKEN, inside, mounted

AUTH = [Bearer(TOKEN)]
ROW, DRAIN = Hint(ID, "default", "mail"), Hint(None, "default", "mail")
SITE = "https://shop.example"
ROWS = {"BACKEND": "dbtasks.backend.DatabaseBackend"}


class ArgumentTests(SimpleTestCase):
    """endpoints(…)"""

    def test_arguments_that_are_not_valid(self):
        """They are named when the URLs are imported."""
        for name, values in {
            "max_seconds": (0, 0.5, -1, True, "25", None, float("nan"), float("inf"), 86_401),
            "interval": (0, "60", None, True),
            "deadline": (0, 14, "x", True),
            "concurrency": (0, -1, 1.5, True, "4", None, 1001),
            "backend": ("nobody",),
        }.items():
            for value in values:
                with (
                    self.subTest(f"{name}={value!r}"),
                    self.assertRaises(ImproperlyConfigured) as e,
                ):
                    endpoints(auth=AUTH, **{name: value})
                self.assertIn(name, str(e.exception))

    def test_names_can_be_imported_before_apps_are_loaded(self):
        """As settings do: no models, and no client library."""
        code = (
            "import sys\n"
            "from dbtasks.contrib.http import *\n"
            "Bearer('x' * 40); Post('https://x.example/{target}')\n"
            "wrong = {'dbtasks.models', 'dbtasks.store', 'requests', 'google.auth', 'boto3'}\n"
            "print(sorted(wrong & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        self.assertEqual("[]\n", done.stdout)


class TargetTests(SimpleTestCase):
    """target(hint, origin)"""

    def test_where_hints_go(self):
        """To run/<id>/, or run/ for a drain, of the mount of their backend."""
        with mounted():
            self.assertEqual(f"{SITE}/tasks/run/{ID}/", target(ROW, SITE))
            self.assertEqual(f"{SITE}/tasks/run/", target(DRAIN, f"{SITE}/"))

    def test_an_origin_with_a_path_is_the_mount_itself(self):
        """The endpoints may be those of another service."""
        for origin in (f"{SITE}/app/t/", f"{SITE}/app/t"):
            self.assertEqual(f"{SITE}/app/t/run/{ID}/", target(ROW, origin))

    def test_nested_in_namespaces_and_languages(self):
        """Whatever the language and the prefix of the request that enqueues."""
        nested = inside("api/", "api", path("t/", endpoints(auth=AUTH)))
        languages = i18n_patterns(path("t/", endpoints(auth=AUTH)))
        with mounted(nested):
            self.assertEqual(f"{SITE}/api/t/run/", target(DRAIN, SITE))
        with mounted(*languages), translation.override("de"):
            self.assertEqual(f"{SITE}/en-us/t/run/", target(DRAIN, SITE))
        self.addCleanup(set_script_prefix, "/")
        with mounted():
            set_script_prefix("/odd/")
            self.assertEqual(f"{SITE}/tasks/run/", target(DRAIN, SITE))
            with override_settings(FORCE_SCRIPT_NAME="/app"):
                self.assertEqual(f"{SITE}/app/tasks/run/", target(DRAIN, SITE))

    @override_settings(TASKS={"default": ROWS, "second": ROWS})
    def test_each_backend_has_its_own(self):
        """Two mounts that share a namespace are an error, not a wrong address."""
        one = path("one/", endpoints(auth=AUTH))
        two = path("two/", endpoints(auth=AUTH, backend="second", namespace="second"))
        same = path("two/", endpoints(auth=AUTH, backend="second"))
        hint = DRAIN._replace(backend="second")
        with mounted(one, two):
            self.assertEqual(f"{SITE}/one/run/", target(DRAIN, SITE))
            self.assertEqual(f"{SITE}/two/run/", target(hint, SITE))
        with mounted(one, same):
            self.assertEqual(f"{SITE}/one/run/", target(DRAIN, SITE))
            with self.assertRaisesMessage(ImproperlyConfigured, "share the namespace 'dbtasks'"):
                target(hint, SITE)

    def test_nowhere(self):
        """Without a mount, or without URLs."""
        message = "are not mounted"
        with mounted(path("x", lambda request: None)):  # type: ignore[arg-type]
            self.assertRaisesMessage(ImproperlyConfigured, message, target, ROW, SITE)
        with override_settings(ROOT_URLCONF=None):
            self.assertRaisesMessage(ImproperlyConfigured, message, target, ROW, SITE)


class CheckTests(SimpleTestCase):
    """manage.py check"""

    def found(self) -> list[str]:
        """Return the ids of our messages about URLs and pushes."""
        ids = (message.id or "" for message in checks.run_checks())
        return sorted(id for id in ids if re.fullmatch(r"dbtasks\.[EW]02\d", id))

    def messages(self, push: Post) -> list[checks.CheckMessage]:
        return list(push.check("default"))

    def test_nothing_is_wrong(self):
        """With a push and a mount, and without both."""
        self.assertEqual([], self.found())
        with mounted(), with_push(Recorder()):
            self.assertEqual([], self.found())

    def test_a_push_without_endpoints(self):
        """E023: hints lead nowhere; also if another backend is mounted."""
        with with_push(Recorder()):
            self.assertEqual(["dbtasks.E023"], self.found())
        self.assertFalse(SQS("https://sqs.eu-west-1.amazonaws.com/1/x").needs_endpoints)
        with with_push(Silent()):
            self.assertEqual([], self.found())
        with override_settings(
            TASKS={
                "default": settings.TASKS["default"] | {"OPTIONS": {"push": Recorder()}},
                "b": ROWS,
            }
        ):
            with mounted(auth=AUTH, backend="b"):
                self.assertEqual(["dbtasks.E023"], self.found())
            with mounted(auth=AUTH):
                self.assertEqual([], self.found())
            with override_settings(ROOT_URLCONF=None):
                [wrong] = [m for m in checks.run_checks(tags=["urls"]) if m.id == "dbtasks.E023"]
        self.assertIn("its hints lead nowhere", wrong.msg)

    def test_short_tokens_and_get(self):
        """W022 and W023; no message holds the token."""
        with mounted(auth=[Bearer("x" * 31), Bearer("y" * 32, "short")], allow_get=True):
            self.assertEqual(["dbtasks.W022", "dbtasks.W022", "dbtasks.W023"], self.found())
            self.assertNotIn("xxx", str(checks.run_checks()))
        with mounted(auth=[Bearer("x" * 32)]):
            self.assertEqual([], self.found())

    @override_settings(ALLOWED_HOSTS=[".shop.example", "127.0.0.1", "[::1]"])
    def test_addresses(self):
        """E024 and W024: where every hint would be lost."""
        for at, ids in {
            "https://shop.example": [],
            "https://eu.shop.example:8443/tasks/": [],
            "http://127.0.0.1:8000": [],
            "http://[::1]:8000": [],
            "https://other.example": ["dbtasks.W024"],
            "http://shop.example": ["dbtasks.E024"],
            "shop.example": ["dbtasks.E024"],
            "ftp://shop.example": ["dbtasks.E024"],
            "https://": ["dbtasks.E024"],
            "https://shop.example:port": ["dbtasks.E024"],
            "https://[::1": ["dbtasks.E024"],
        }.items():
            with self.subTest(at):
                push = Post("https://service.example/{target}", at=at)
                self.assertEqual(ids, [m.id for m in self.messages(push)])

    def test_a_redirect_to_https(self):
        """W024: the site redirects every hint."""
        push = Post("https://service.example/{target}", at="http://127.0.0.1:8000")
        with override_settings(SECURE_SSL_REDIRECT=True, ALLOWED_HOSTS=["*"]):
            [message] = self.messages(push)
        self.assertEqual("dbtasks.W024", message.id)
        self.assertIn("SECURE_SSL_REDIRECT", message.msg)

    @override_settings(ALLOWED_HOSTS=[], DEBUG=True)
    def test_hosts_of_a_laptop(self):
        """With DEBUG Django allows this machine."""
        for at, count in (("http://localhost:8000", 0), ("https://shop.example", 1)):
            push = Post("https://service.example/{target}", at=at)
            self.assertEqual(count, len(self.messages(push)), at)

    def test_no_part_of_a_password_is_shown(self):
        """Whatever is wrong with the address."""
        for at in (
            "u:secret@h",
            "http://u:secret@h.example",
            "https://:secret/x@h",
            "https://secret#x@h",
        ):
            with override_settings(ALLOWED_HOSTS=["x"], SECURE_SSL_REDIRECT=True):
                found = self.messages(Post("https://service.example/{target}", at=at))
            self.assertTrue(found, at)
            self.assertNotIn("secret", str(found))

    def test_a_backend_that_cannot_run(self):
        """W027: each request would be answered 503."""
        other = "django.tasks.backends.immediate.ImmediateBackend"
        for backend in (ROWS | {"OPTIONS": {"immediate": True}}, {"BACKEND": other}):
            with self.subTest(backend), override_settings(TASKS={"default": backend}):
                with mounted(path("a/", endpoints(auth=AUTH)), path("b/", endpoints(auth=AUTH))):
                    self.assertEqual(1, self.found().count("dbtasks.W027"))
                self.assertNotIn("dbtasks.W027", self.found())

    def test_a_plain_service(self):
        """E024: its token would be sent for all to read."""
        for url, count in (
            ("http://service.example/{target}", 1),
            ("http://127.0.0.1:9/{target}", 0),
        ):
            self.assertEqual(count, len(self.messages(Post(url))), url)


class Silent(Recorder):
    """A push whose hints come another way."""

    needs_endpoints: Any = False
