"""Measure the peers: drain, enqueue and latency, each at its default and at its best.

Owns the steps of the comparison, the same for every peer and for dbtasks, and the rows they
become. Never runs a peer's code in this process.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .. import chart
from . import chosen, load
from .environment import Failure, Home, libpq
from .peer import Peer, Setting

FOLDER = Path(__file__).resolve().parent.parent
MEASURES = ("drain", "enqueue", "latency")
SETTINGS = ("default", "best")

# Seconds until the first task must have been finished.
PATIENCE = 30.0
# Calls that have to be seen in their task's body before a rate is believed, and seconds for them.
WITNESSES, WITNESS_SECONDS = 20, 8.0
# Seconds of enqueueing one by one, and calls enqueued at once, in one run.
ONE_BY_ONE_SECONDS, BULK = 1.5, 20_000
# Looks of an idle worker that the calls of the latency measure spread over, at least.
LEAST_CALLS = 10


# What `--save` replaces in RESULTS.md, and the words around the table there.
MARKS = ("<!-- peers -->", "<!-- /peers -->")
PICTURE = "![No-op tasks drained per second, default and best of each queue](drain.svg)"
HEAD = ("| what | median | range | of dbtasks |", "|---|---|---|---|")
HOW = (
    "The reference of these rows is dbtasks at the same setting. How the workers were started, and "
    "where the rates of their drains come from:"
)


@dataclass
class Row:
    """One line of the table."""

    measure: str
    detail: str
    peer: str
    version: str
    setting: str
    unit: str
    values: list[float] = field(default_factory=list)
    reason: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """Return the middle of the runs."""
        return statistics.median(self.values)

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what is the same in the rows of two peers that are compared."""
        return self.measure, self.detail, self.setting

    @property
    def what(self) -> str:
        """Return the first cell."""
        name = f"{self.peer} {self.version}".strip()
        return f"{self.measure}{self.detail and f' ({self.detail})'}: {name}, {self.setting}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the comparison."""
    group = parser.add_argument_group("comparison with other queues")
    group.add_argument(
        "--against",
        type=peer_names,
        nargs="+",
        action="extend",
        default=[],
        metavar="PEER",
        help="measure these, too, each in an environment of its own; or all. "
        "Measures are named before this option",
    )
    group.add_argument(
        "--backlog", type=numbers, default=[20_000], help="rows to drain, as 20000,200000"
    )
    group.add_argument("--window", type=float, default=10.0, help="seconds a drain is watched")
    group.add_argument(
        "--redis",
        default="redis://127.0.0.1:6379/15",
        help="for Celery and huey, whose keys in this database are deleted",
    )
    group.add_argument(
        "--save", action="store_true", help="write RESULTS.md, results.json, drain.svg"
    )


def peer_names(text: str) -> str:
    """Return the text if it names peers, or say which there are."""
    try:
        chosen([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def numbers(text: str) -> list[int]:
    """Return the numbers of a comma list; raise ValueError if one is none, or below 1."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


class Comparison:
    """One run of the tool against some peers."""

    def __init__(self, options: argparse.Namespace, measures: list[str]) -> None:
        self.options, self.measures = options, [name for name in MEASURES if name in measures]
        self.rows: list[Row] = []
        self.began = time.monotonic()

    def run(self) -> Iterator[Row]:
        """Yield each row when it has been measured, dbtasks first."""
        for name in ["dbtasks", *chosen(self.options.against)]:
            for setting in SETTINGS:
                for row in self.peer(load(name), setting):
                    self.rows.append(row)
                    yield row

    def peer(self, peer: Peer, name: str) -> Iterator[Row]:
        """Yield the rows of one peer with one setting; a failure is a row with its reason."""
        setting = getattr(peer, name)
        try:
            with Home(peer, setting, self.url(peer)) as home:
                yield from self.measure(Bench(home, peer, name, self.options, self.progress))
        except Failure as failure:
            yield Row("all", "", peer.name, "", name, "", reason=str(failure))

    def url(self, peer: Peer) -> str:
        """Return the URL of the server that the peer needs."""
        if peer.server == "redis":
            return str(self.options.redis)
        url = libpq(self.options.database)
        if not self.options.database.startswith(("postgres://", "postgresql://")):
            raise Failure("compared on PostgreSQL only; --database says otherwise")
        return url

    def measure(self, bench: "Bench") -> Iterator[Row]:
        """Yield the rows of all measures asked for."""
        for measure in self.measures:
            if measure == "enqueue" and bench.setting_name == "best":
                continue  # A worker's flags change nothing for the caller.
            yield from getattr(bench, measure)()

    def progress(self, text: str) -> None:
        """Say on stderr what is being done."""
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def reference(self, row: Row) -> list[float] | None:
        """Return what dbtasks reached in this run, if that is not this row."""
        for other in self.rows:
            if other.peer == "dbtasks" and other.key == row.key and row.peer != "dbtasks":
                return other.values or None
        return None


class Bench:
    """The measures of one peer with one setting."""

    def __init__(
        self,
        home: Home,
        peer: Peer,
        setting_name: str,
        options: argparse.Namespace,
        progress: Callable[[str], None],
    ) -> None:
        self.home, self.peer, self.options, self.progress = home, peer, options, progress
        self.setting_name = setting_name
        self.setting: Setting = home.setting

    def row(self, measure: str, detail: str, unit: str) -> Row:
        """Return an empty row."""
        version = self.home.versions.get(self.peer.name, "")
        return Row(measure, detail, self.peer.name, version, self.setting_name, unit)

    @contextmanager
    def filled(self, row: Row) -> Iterator[Row]:
        """Yield the row to be filled; a failure meanwhile becomes its reason."""
        self.progress(row.what)
        try:
            yield row
        except Failure as failure:
            row.values, row.reason = [], str(failure)

    def drain(self) -> Iterator[Row]:
        """A backlog, worked off for a window: finished tasks by the seconds between their ends."""
        believed = False
        for count in self.options.backlog:
            with self.filled(self.row("drain", f"backlog {count:,}", "tasks/s")) as row:
                if not believed:
                    self.witness()
                    believed = True
                for _ in range(self.options.runs):
                    row.values.append(self.drain_once(count))
                    self.progress(f"    {row.values[-1]:,.0f} tasks/s")
            yield row

    def drain_once(self, count: int) -> float:
        """Return the rate of one window."""
        self.home.ask("fill", count=count)
        with self.home.worker():
            tasks, seconds = self.home.ask("watch", window=self.options.window, patience=PATIENCE)
        if not tasks or not seconds:
            raise Failure("the window is too short, or the backlog too small, for a rate")
        return float(tasks / seconds)

    def witness(self) -> None:
        """Raise Failure unless what the peer calls finished was really executed."""
        self.home.ask("fill", count=WITNESSES)
        with self.home.worker(tell=True):
            seen = self.home.ask("witness", count=WITNESSES, seconds=WITNESS_SECONDS)
        # Those that began while the worker was being stopped.
        seen += self.home.ask("witness", count=WITNESSES, seconds=0.2)
        finished = self.home.ask("finished")
        if not seen or finished > seen:
            raise Failure(f"{finished} tasks are marked as finished, {seen} were executed")
        self.progress(f"    witness: {seen} of {WITNESSES} executed, {finished} finished")

    def enqueue(self) -> Iterator[Row]:
        """Calls by the peer's API, one by one and in bulk."""
        with self.filled(self.row("enqueue", "one by one", "rows/s")) as row:
            for _ in range(self.options.runs):
                self.home.ask("clear")
                count, seconds = self.home.ask("one_by_one", seconds=ONE_BY_ONE_SECONDS)
                row.values.append(count / seconds)
        yield row
        with self.filled(self.row("enqueue", "in bulk", "rows/s")) as row:
            for _ in range(self.options.runs):
                self.home.ask("clear")
                if (spent := self.home.ask("bulk", count=BULK)) is None:
                    raise Failure("has no call for many")
                row.values.append(BULK / spent)
        yield row

    def latency(self) -> Iterator[Row]:
        """From before the call to the first line of the task, in an idle worker."""
        with self.filled(self.row("latency", "", "ms")) as row:
            self.home.ask("clear")
            with self.home.worker(tell=True):
                interval = self.setting.interval
                seconds = max(2 * self.options.window, LEAST_CALLS * interval)
                waits = self.home.ask("latency", seconds=seconds, interval=interval)
        if row.reason:
            yield row
            return
        for percent in (50, 99):
            point = self.row("latency", f"p{percent}", "ms")
            point.values = [quantile(waits, percent)]
            point.note = f"{len(waits)} calls"
            yield point


def quantile(values: list[float], percent: int) -> float:
    """Return that percentile: the smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def compare(options: argparse.Namespace, measures: list[str], machine: str) -> None:
    """Measure the peers named by the options, and print a row of the table for each figure."""
    # SIGTERM ends workers and drops databases as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    comparison = Comparison(options, measures)
    if not comparison.measures:
        sys.exit(f"--against measures {', '.join(MEASURES)}: name one of these, or no measure.")
    lines = []
    for row in comparison.run():
        lines.append(line(row, comparison.reference(row)))
        print(lines[-1], flush=True)
    notes = [HOW, "", *legend(comparison.rows)]
    print("", *notes, sep="\n")
    if options.save:
        save(comparison.rows, machine, [*HEAD, *lines, "", *notes])


def line(row: Row, reference: list[float] | None) -> str:
    """Return the row as Markdown, with its ratio to `reference`."""
    if row.reason:
        return f"| {row.what} | not measured | {cell(row.reason)} | |"
    show = "{:,.0f}" if row.median >= 100 else "{:.2f}"
    bounds = f"{show.format(min(row.values))}-{show.format(max(row.values))}"
    bounds = row.note if len(row.values) == 1 and row.note else bounds
    ratio = f"{row.median / statistics.median(reference):.3g}" if reference else ""
    return f"| {row.what} | {show.format(row.median)} {row.unit} | {bounds} | {ratio} |"


def cell(text: str) -> str:
    """Return the text as it may stand in a table: short, on one line, without bars."""
    return " ".join(text.replace("|", "/").split())[:300]


def legend(rows: list[Row]) -> Iterator[str]:
    """Yield a line for each worker that was measured."""
    for name, setting_name in dict.fromkeys((row.peer, row.setting) for row in rows):
        peer = load(name)
        setting: Setting = getattr(peer, setting_name)
        times = f"{setting.processes} × " if setting.processes > 1 else ""
        command = f"{times}`{' '.join(setting.command)}`"
        yield f"- {name}, {setting_name}: {command}; {setting.why}; {peer.clock}"


def save(rows: list[Row], machine: str, lines: list[str]) -> None:
    """Write the figures, the chart, and the part of RESULTS.md between our two marks."""
    figures = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (FOLDER / "results.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    picture = [PICTURE, ""] if any(row.measure == "drain" for row in rows) else []
    if picture:
        (FOLDER / "drain.svg").write_text(chart.drain(figures))
    results = FOLDER / "RESULTS.md"
    before, _, rest = results.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    today = f"{datetime.now(tz=UTC):%Y-%m-%d}"
    part = [MARKS[0], f"{machine} ({today})", "", *picture, *lines, MARKS[1]]
    results.write_text(before + "\n".join(part) + after)
