"""What a body and a query may say: anything else is a 400 with a sentence."""

from typing import Any

from django.test import TestCase

from dbtasks.contrib.http import AppEngineCron, Bearer

from ... import tasks
from ...support.mounts import BEARER, ID, TOKEN, error_of, get, mounted, post

OBJECT = "The body must be a JSON object in UTF-8, such as {}."
INTEGER = "'max_tasks' must be an integer from 1 to 1,000."
SECONDS = "'max_seconds' must be a number from 1 to 25."
QUEUE = "'queue' must be the name of a queue: 1 to 100 characters."
AGE = (
    "'older_than' must be a duration above zero, of a hundred years at most: seconds, or a text "
    "such as '12h' or '7d'."
)
STATUS = '\'status\' must be a list of "SUCCESSFUL" or "FAILED".'


class BodyTests(TestCase):
    """The JSON object of a POST."""

    def setUp(self) -> None:
        self.enterContext(mounted())
        tasks.remember.enqueue("must not run")

    def refuses(self, url: str, body: Any, sentence: str) -> None:
        with self.subTest(f"{url} {body!r:.60}"):
            tasks.ran.clear()
            response = post(url, body)
            self.assertEqual((400, sentence), (response.status_code, error_of(response)))
            self.assertEqual([], tasks.ran)

    def test_what_is_no_object(self):
        """Whatever it is, the sentence is the same."""
        for body in (
            *(b"[]", b'"x"', b"1", b"null", b"true", b"{", b"{}{}", b"max_tasks=5", b"\xff\xfe"),
            *(b'{"max_tasks": NaN}', b'{"max_tasks": Infinity}', b'{"max_tasks": -Infinity}'),
            *(b'{"max_tasks": 1e400}', b'{"max_tasks": ' + b"9" * 5000 + b"}"),
            *(b'{"queue": "\xe9"}', b"{'queue': 'x'}", "{}".encode("utf-16"), b"\xef\xbb\xbf{}"),
            b'{"max_tasks": ' + b"[" * 10_000 + b"}",
            b'{"max_tasks": ' + b"[" * 8_000 + b"]" * 8_000 + b"}",
            b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        ):
            for url in ("sweep/", "run/", f"run/{ID}/", "purge/"):
                if body.startswith((b'{"max_tasks": [', b'{"a"')):
                    # Where the parser goes that deep, the type or the name is what is wrong.
                    self.assertEqual(400, post(url, body).status_code)
                else:
                    self.refuses(url, body, OBJECT)

    def test_no_body_is_an_empty_object(self):
        """As are blanks."""
        for body in (b"", b" \n", b"{}"):
            response = post(f"run/{ID}/", body)
            self.assertEqual("unknown", response.json()["why"])

    def test_unknown_names(self):
        """The nearest valid one is named, or all."""
        wrong = "is not a valid parameter."
        for url, name, more in (
            ("sweep/", "max_task", "Did you mean 'max_tasks'?"),
            ("sweep/", "backend_name", "Use 'max_tasks', 'max_seconds'."),
            ("sweep/", "queue", "Use 'max_tasks', 'max_seconds'."),
            ("run/", "queue_name", "Did you mean 'queue'?"),
            ("run/", "backend", "Use 'max_tasks', 'max_seconds', 'queue'."),
            (f"run/{ID}/", "allow-retry", "Did you mean 'allow_retry'?"),
            (f"run/{ID}/", "type", "Use 'allow_retry'."),
            ("purge/", "days", "Use 'older_than', 'status', 'dry_run', 'max_seconds'."),
        ):
            self.refuses(url, {name: 1}, f"{name!r} {wrong} {more}")

    def test_a_long_name_is_cut_off(self):
        """The answer is not as long as the question."""
        response = post("sweep/", {"x" * 10_000: 1})

        self.assertLess(len(response.content), 300)

    def test_integers(self):
        """true is none, nor is 1.0; the limits are named."""
        for value in (True, False, None, 0, -1, 1001, 1.0, 1.5, "5", [5], {}, 10**30):
            for url in ("sweep/", "run/"):
                self.refuses(url, {"max_tasks": value}, INTEGER)

    def test_seconds(self):
        """No more than the mount allows."""
        for value in (True, None, 0, 0.99, 25.1, -1, "5", "5s", [], 1e300):
            for url in ("sweep/", "run/", "purge/"):
                self.refuses(url, {"max_seconds": value}, SECONDS)
        with mounted(auth=[Bearer(TOKEN)], max_seconds=600):
            self.refuses("run/", {"max_seconds": 601}, SECONDS.replace("25", "600"))
            self.assertEqual(400, post("run/", {"max_seconds": True}).status_code)

    def test_names_of_queues(self):
        """What no database takes is refused before one is asked."""
        for value in (1, True, None, "", "x" * 101, "a\0b", "\ud800", ["default"]):
            self.refuses("run/", {"queue": value}, QUEUE)

    def test_flags(self):
        """1 is not true."""
        for value in (1, 0, "true", None, []):
            self.refuses(
                f"run/{ID}/", {"allow_retry": value}, "'allow_retry' must be true or false."
            )
            self.refuses("purge/", {"dry_run": value}, "'dry_run' must be true or false.")

    def test_ages(self):
        """Zero, which would delete everything, is none."""
        for value in (0, -1, True, None, "", "0", "0d", "7 days", [], 1e300, "-7d"):
            self.refuses("purge/", {"older_than": value}, AGE)

    def test_statuses(self):
        """A list, of final ones only; and an age with it."""
        for value in ("FAILED", [], ["READY"], ["FAILED", 1], None, [["FAILED"]], ["failed"], [{}]):
            self.refuses("purge/", {"older_than": "7d", "status": value}, STATUS)
        needs = "'status' needs 'older_than': a retention that is over has no status."
        self.refuses("purge/", {"status": ["FAILED"]}, needs)

    def test_nothing_in_the_url_of_a_post(self):
        """The mount decides on the backend, and parameters are in the body."""
        sentence = "Parameters must be in the body, as a JSON object, not in the URL."
        for url in ("sweep/", "run/", f"run/{ID}/", "purge/"):
            self.refuses(f"{url}?backend_name=other", None, sentence)
            self.refuses(f"{url}?allow_retry=true", {}, sentence)


class QueryTests(TestCase):
    """The query of a GET."""

    def setUp(self) -> None:
        self.enterContext(mounted(auth=[Bearer(TOKEN), AppEngineCron()], allow_get=True))

    def test_the_same_rules_as_in_a_body(self):
        """Names, types and ranges."""
        unknown = "'days' is not a valid parameter. Use 'older_than', 'status', 'dry_run', "
        for url, query, sentence in (
            ("sweep/", {"max_tasks": "true"}, INTEGER),
            ("sweep/", {"max_tasks": "1.0"}, INTEGER),
            ("sweep/", {"max_tasks": "1001"}, INTEGER),
            ("sweep/", {"max_tasks": "٣"}, INTEGER),
            ("sweep/", {"max_tasks": ""}, INTEGER),
            ("sweep/", {"max_seconds": "nan"}, SECONDS),
            ("sweep/", {"max_seconds": "1e400"}, SECONDS),
            ("sweep/", {"max_seconds": "26"}, SECONDS),
            ("sweep/", {"max_tasks": ["1", "2"]}, "'max_tasks' must be given once."),
            ("status/", {"queue": ""}, QUEUE),
            ("status/", {"queue": "a\0"}, QUEUE),
            (
                "status/",
                {"queues": "a"},
                "'queues' is not a valid parameter. Did you mean 'queue'?",
            ),
            ("purge/", {"days": "0"}, f"{unknown}'max_seconds'."),
            ("purge/", {"older_than": "0"}, AGE),
            ("purge/", {"dry_run": "1"}, "'dry_run' must be true or false."),
            ("purge/", {"older_than": "7d", "status": "FAILED,READY"}, STATUS),
        ):
            with self.subTest(f"{url} {query}"):
                response = get(url, BEARER, **query)
                self.assertEqual((400, sentence), (response.status_code, error_of(response)))

    def test_valid_queries(self):
        """Lists may be repeated or joined by commas."""
        for query in (
            {"older_than": "7d", "status": "FAILED,SUCCESSFUL", "dry_run": "true"},
            {"older_than": "60", "status": ["FAILED", "SUCCESSFUL"], "dry_run": "true"},
            {"dry_run": "true", "max_seconds": "1.5"},
        ):
            self.assertEqual({"would_delete": 0}, get("purge/", BEARER, **query).json())
