"""The benchmark tool: what it reads and draws, without measuring anything."""

import argparse
import contextlib
import io
from xml.etree import ElementTree

from django.test import SimpleTestCase

from benchmarks import chart
from benchmarks.peers import PEERS, chosen, load, runner


def options(*words: str) -> argparse.Namespace:
    """Return what the command line means."""
    parser = argparse.ArgumentParser()
    runner.add_arguments(parser)
    return parser.parse_args(words)


def row(peer: str, setting: str, *values: float) -> runner.Row:
    """Return a row of a drain."""
    return runner.Row("drain", "backlog 10", peer, "1.0", setting, "tasks/s", list(values))


class AgainstTests(SimpleTestCase):
    """--against"""

    def test_names_lists_and_all(self):
        """Names, comma lists and repeated options add up, in one order, each peer once."""
        for words, expected in {
            (): [],
            ("--against", "huey"): ["huey"],
            ("--against", "huey,celery", "pgqueuer"): ["pgqueuer", "celery", "huey"],
            ("--against", "huey", "--against", "Huey, celery"): ["celery", "huey"],
            ("--against", "huey,all"): list(PEERS),
        }.items():
            with self.subTest(words):
                self.assertEqual(expected, chosen(options(*words).against))

    def test_an_unknown_name_is_refused(self):
        """The sentence names it, what is near, and what there is."""
        complaint = io.StringIO()

        with self.assertRaises(SystemExit), contextlib.redirect_stderr(complaint):
            options("--against", "django-task-db")

        self.assertIn("unknown peer 'django-task-db'", complaint.getvalue())
        self.assertIn("did you mean 'django-tasks-db'", complaint.getvalue())
        self.assertIn("procrastinate", complaint.getvalue())

    def test_backlogs_are_parsed(self):
        """A comma list of positive numbers, and nothing else."""
        self.assertEqual([20_000, 200_000], options("--backlog", "20000,200000").backlog)
        for text in ("", "many", "10,0"):
            with (
                self.subTest(text),
                self.assertRaises(SystemExit),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                options("--backlog", text)

    def test_every_peer_is_pinned(self):
        """Adapters load without their packages, and install exact versions."""
        for name in PEERS:
            with self.subTest(name):
                peer = load(name)

                self.assertEqual(name, peer.name)
                self.assertTrue(all("==" in wanted for wanted in peer.requirements))
                self.assertTrue(peer.default.command and peer.best.why)

    def test_the_task_module_of_others_is_not_ours(self):
        """django-dbtasks never gets a path to this repository, whose package has the same name."""
        home = runner.Home(load("django-dbtasks"), load("django-dbtasks").default, "redis://x")
        home.scripts = home.door = runner.FOLDER

        self.assertEqual(str(runner.FOLDER), home.environment["PYTHONPATH"])


class FiguresTests(SimpleTestCase):
    """Medians, percentiles and rows"""

    def test_percentiles_of_times(self):
        """The smallest value that so many percent do not exceed."""
        values = [float(n) for n in range(100, 0, -1)]

        self.assertEqual(50.0, runner.quantile(values, 50))
        self.assertEqual(99.0, runner.quantile(values, 99))
        self.assertEqual(7.0, runner.quantile([7.0], 99))
        self.assertEqual(2.0, runner.quantile([1.0, 2.0], 99))

    def test_a_row_has_median_range_and_ratio(self):
        """The middle of the runs, their bounds, and the ratio to dbtasks' middle."""
        found = runner.line(row("huey", "best", 300.0, 100.0, 200.0), [1000.0, 400.0, 100.0])

        self.assertEqual(
            "| drain (backlog 10): huey 1.0, best | 200 tasks/s | 100-300 | 0.5 |", found
        )

    def test_a_failure_is_a_row(self):
        """Its reason stands there, on one line and without the table's bars."""
        failed = row("huey", "best")
        failed.reason = "no | such\nthing"

        self.assertEqual(
            "| drain (backlog 10): huey 1.0, best | not measured | no / such thing | |",
            runner.line(failed, None),
        )


class ChartTests(SimpleTestCase):
    """The chart"""

    def svg(self, *rows: runner.Row) -> ElementTree.Element:
        figures = {"machine": "2 cores & <more>", "rows": [vars(row) for row in rows]}
        return ElementTree.fromstring(chart.drain(figures))

    def test_shows_every_peer_and_rate(self):
        """Well-formed, with a name, two bars and two figures for each, and a text alternative."""
        rows = [
            row(name, setting, rate * at, rate * at)
            for at, name in enumerate(["dbtasks", *PEERS], start=1)
            for setting, rate in (("default", 10.0), ("best", 1000.0))
        ]

        svg = self.svg(*rows)

        said = " ".join(svg.itertext())
        for at, name in enumerate(["dbtasks", *PEERS], start=1):
            self.assertIn(f"{name}: default {at * 10:,.0f}, best {at * 1000:,.0f}", said)
        self.assertEqual(2 * (len(PEERS) + 1), len(list(svg.findall(".//{*}rect"))))
        self.assertEqual("img", svg.get("role"))

    def test_longer_bars_are_faster(self):
        """The scale is logarithmic: ten times as fast is as much longer, wherever it begins."""
        svg = self.svg(row("a", "default", 10.0), row("a", "best", 100.0), row("b", "best", 1000.0))

        best_b, best_a, default_a = sorted(
            (float(bar.get("width")) for bar in svg.findall(".//{*}rect")), reverse=True
        )[:3]
        self.assertAlmostEqual(best_b - best_a, best_a - default_a, delta=0.2)

    def test_what_was_not_measured_says_so(self):
        """A peer that failed keeps its row."""
        svg = self.svg(row("dbtasks", "default", 10.0), runner.Row("all", "", "huey", "", "", ""))

        self.assertIn("huey: not measured", " ".join(svg.itertext()))
