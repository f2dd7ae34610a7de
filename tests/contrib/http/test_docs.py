"""What docs/anywhere.md says about HTTP, tried."""

import inspect
import re
import shlex
from types import ModuleType
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from django.test import Client, SimpleTestCase, TransactionTestCase, override_settings

from dbtasks.contrib.http import endpoints, post
from dbtasks.contrib.http.work import ENDPOINTS
from dbtasks.mounted import mounted as mounts

from ...support.mounts import TOKEN, mounted
from ...support.processes import ROOT

PAGE = (ROOT / "docs" / "anywhere.md").read_text()
PART = PAGE[PAGE.index("\n## HTTP\n") : PAGE.index("\n## Push\n")]


def block(kind: str) -> str:
    """Return the text of the one block of that kind."""
    [text] = re.findall(
        rf"^<!-- http {kind} -->\n```\w+\n(.*?)^```$", PART, re.DOTALL | re.MULTILINE
    )
    return str(text)


def rows(first: str, part: str = PART) -> dict[str, list[str]]:
    """Return the cells of the table whose head begins with that word, by the first cell."""
    [text] = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", part, re.MULTILINE)
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {first: rest for first, *rest in cells}


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


class DocsTests(TransactionTestCase):
    """The blocks."""

    def setUp(self) -> None:
        module: Any = ModuleType("urls_of_the_docs")
        with mock.patch.dict("os.environ", DBTASKS_TOKEN=TOKEN):
            exec(block("urls"), vars(module))
        self.enterContext(override_settings(ROOT_URLCONF=module))

    def test_the_lines(self):
        """Each request is answered with 200."""
        for line in block("lines").splitlines():
            words = shlex.split(line.removeprefix("$ ").replace("$DBTASKS_TOKEN", TOKEN))
            self.assertEqual("curl", words[0])
            options = dict(zip(words[1:-1:2], words[2::2], strict=True))
            name, value = options["-H"].split(": ")
            with self.subTest(line):
                response = Client().generic(
                    options.get("-X", "GET"),
                    urlsplit(words[-1]).path,
                    options.get("-d", ""),
                    "application/x-www-form-urlencoded",
                    headers={name: value},
                )
                self.assertEqual(200, response.status_code, response.content)

    def test_the_signed_request(self):
        """It is accepted."""
        sent: list[Any] = []
        with mock.patch("urllib.request.urlopen", sent.append):
            exec(block("sign"), {})
        [request] = sent
        auth = [vars_of(block("sign"))["hook"]]
        with mounted(auth=auth):
            response = Client().generic(
                "POST", urlsplit(request.full_url).path, request.data, headers=request.headers
            )

        self.assertEqual(200, response.status_code, response.content)


def vars_of(code: str) -> dict[str, Any]:
    """Return the variables of a block that sends nothing here."""
    found: dict[str, Any] = {}
    with mock.patch("urllib.request.urlopen"):
        exec(code, found)
    return found


class TableTests(SimpleTestCase):
    """The tables."""

    def test_each_endpoint_and_its_parameters(self):
        """The table and the code agree."""
        with mounted():
            mount = mounts()[0].mount
        expected = {
            f"{each.method} {'run/<id>/' if each.scope == 'run-one' else each.scope + '/'}": {
                *each.kinds(mount)
            }
            for each in ENDPOINTS.values()
        }
        shown = {name.strip("`"): names(cells[1]) for name, cells in rows("request").items()}

        self.assertEqual(expected, shown)

    def test_each_option(self):
        """With its default."""
        parameters = inspect.signature(endpoints).parameters
        shown = {name.strip("`"): cells[0] for name, cells in rows("option").items()}

        self.assertEqual([*parameters], [*shown])
        for name in ("max_seconds", "concurrency", "interval"):
            self.assertEqual(float(shown[name]), parameters[name].default)

    def test_each_value_of_post(self):
        """The table and the code agree."""
        shown = " ".join(rows("filled in", PAGE))

        self.assertEqual(set(post.NAMES), set(re.findall(r"\{(\w+)\}", shown)))
