"""``manage.py demo``: measure every file of a folder, one task each, in a runner of its own."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from heapq import nlargest
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.template.defaultfilters import filesizeformat

from dbtasks import store
from dbtasks.console import preflight
from dbtasks.console.terminal import Terminal, humanize_seconds, plural, printable
from dbtasks.options import values
from demo.databases import database
from demo.run import Measured, Run, walk
from demo.tasks import as_name

# What each kind of database needs: a module, and the extra that brings it.
DRIVERS = {
    "django.db.backends.mysql": ("MySQLdb", "mysql"),
    "django.db.backends.postgresql": ("psycopg", "postgres"),
    "django.db.backends.sqlite3": ("sqlite3", None),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Lines of each list at the end.
TOP = 5


class Command(BaseCommand):
    """Enqueue, run, and show what came out."""

    help = "Measures every file of a folder, one task each, through a runner."
    # Before --database has its say, the settings may name a database that is not meant.
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument(
            "folder",
            nargs="?",
            type=Path,
            default=settings.BASE_DIR,
            help="The folder to measure (default: this repository).",
        )
        parser.add_argument(
            "--database",
            metavar="URL",
            help="postgres://… or mysql://… of a database that exists (default: an SQLite file).",
        )
        parser.add_argument(
            *("-w", "--workers"),
            type=values.whole("number of threads", 1, 1000),
            default=4,
            metavar="N",
            help="Threads of the runner (default: 4).",
        )

    def handle(self, folder, **options):
        if not folder.is_dir():
            raise CommandError(f"{str(folder)!r} is not a folder. Use one whose files to measure.")
        if options["database"]:
            use_database(options["database"])
        self.screen = Terminal(self.stderr)
        with Interrupts() as self.interrupts:
            preflight.check_connection("default")
            call_command("migrate", verbosity=0, interactive=False)
            try:
                self.work(folder.resolve(), options["workers"])
            except KeyboardInterrupt:
                self.screen.bar("")
                self.stdout.write("\nStopped. Start the same command again to go on.")
        if self.interrupts.received:
            raise SystemExit(128 + self.interrupts.received[0])

    def work(self, folder: Path, workers: int) -> None:
        """Do all of it, or as much as there is time for until a signal comes."""
        run = self.enqueue(folder)
        if run is None or self.interrupts.received:
            self.say_how_to_go_on(run)
            return
        since = store.now("default")
        self.stdout.flush()
        code = self.interrupts.call(
            [settings.BASE_DIR / "manage.py", "taskrunner", "--drain", "--queue", "demo"],
            ["--workers", workers, "--worker-id", "demo"],
        )
        if code not in (0, 3) and not self.interrupts.received:
            raise CommandError(f"The runner ended with code {code}. Start the demo again to go on.")
        self.show(run, since)
        if run.is_left():
            self.say_how_to_go_on(run)
        else:
            self.say_what_else()

    # Enqueue

    def enqueue(self, folder: Path) -> Run | None:
        """Return the run with a row for every file, or for some if a signal came."""
        names = self.names(folder)
        if self.interrupts.received:
            return None
        if not names:
            raise CommandError(f"{printable(str(folder))!r} has no files.")
        run = Run.last(folder)
        if run is None or run.is_over(names):
            run = Run.new(folder, len(names))
            self.stdout.write(f"{plural(len(names), 'file')} in {printable(str(folder))}")
        else:
            self.stdout.write(f"Going on with {printable(str(folder))}: {in_words(run)}")
        self.write_rows(run, run.missing(names))
        return run

    def names(self, folder: Path) -> list[str]:
        """Return the files of the folder, without those of the demo's own database."""
        own = {Path(connection.settings_dict["NAME"]).resolve(), settings.DEMO_FILE}
        ends = ("", "-wal", "-shm", "-journal")
        skip = {path.with_name(path.name + end) for path in own for end in ends}
        names = []
        for name in walk(folder, skip, self.say_unlisted):
            if self.interrupts.received:
                break
            names.append(name)
        return names

    def say_unlisted(self, error: OSError) -> None:
        """Tell that a folder's files are left out."""
        self.screen.line(printable(f"{error.filename} cannot be listed: {error.strerror}."))

    def write_rows(self, run: Run, names: list[str]) -> None:
        """Enqueue the files, and show how far that is."""
        written = 0
        with closing(run.enqueue(names, lambda: bool(self.interrupts.received))) as chunks:
            for count in chunks:
                written += count
                if self.screen.isatty():
                    self.screen.bar(f"enqueued {written:,} of {len(names):,}")
        self.screen.bar("")

    # Show

    def show(self, run: Run, since) -> None:
        """Print the table: throughput, slowest and largest files, failures."""
        done, failed = [], []
        for measured in run.finished():
            (done if measured.error is None else failed).append(measured)
        self.throughput([m for m in done + failed if m.finished_at >= since])
        self.totals(done, failed)
        self.files("Slowest", nlargest(TOP, done, key=lambda m: m.seconds))
        self.files("Largest", nlargest(TOP, done, key=lambda m: m.value["size"]))
        self.failures(failed)

    def throughput(self, measured: list[Measured]) -> None:
        """Print how fast it went since the command started."""
        if not measured:
            return
        began, ended = min(m.started_at for m in measured), max(m.finished_at for m in measured)
        seconds = max((ended - began).total_seconds(), 0.001)
        size = sum(m.value["size"] for m in measured if m.value)
        self.stdout.write(
            f"\n{plural(len(measured), 'file')} in {humanize_seconds(seconds)}: "
            f"{len(measured) / seconds:,.0f} files/s, {in_bytes(size / seconds)}/s"
        )

    def totals(self, done: list[Measured], failed: list[Measured]) -> None:
        """Print what all files of the run come to."""
        if not done + failed:
            return
        texts = [m.value for m in done if m.value["lines"] is not None]
        self.stdout.write(
            f"In all: {plural(len(done), 'file')} measured, {len(failed):,} failed; "
            f"{in_bytes(sum(m.value['size'] for m in done))}; {plural(len(texts), 'text')} with "
            f"{sum(v['lines'] for v in texts):,} lines, {sum(v['words'] for v in texts):,} words"
        )

    def files(self, title: str, chosen: list[Measured]) -> None:
        """Print those files with what was measured."""
        if not chosen:
            return
        self.stdout.write(
            self.style.MIGRATE_HEADING(
                f"\n{title + ' files':44}"
                f"{'took':>10}{'size':>12}{'lines':>10}{'words':>11}  SHA-256"
            )
        )
        for m in chosen:
            lines, words = (
                "–" if m.value[key] is None else f"{m.value[key]:,}" for key in ("lines", "words")
            )
            self.stdout.write(
                f"{in_column(m.name):44}{humanize_seconds(m.seconds):>10}"
                f"{in_bytes(m.value['size']):>12}{lines:>10}{words:>11}  "
                f"{m.value['sha256'][:12]}…"
            )

    def failures(self, failed: list[Measured]) -> None:
        """Print the files that could not be measured, and why."""
        if not failed:
            return
        self.stdout.write(self.style.ERROR(f"\nFailed files ({len(failed):,})"))
        for m in failed[: 2 * TOP]:
            last = (m.error[1].strip().splitlines() or [m.error[0]])[-1]
            self.stdout.write(f"{in_column(m.name):44}  {printable(last)}")
        if len(failed) > 2 * TOP:
            self.stdout.write(f"… and {len(failed) - 2 * TOP:,} more, in the admin.")

    def say_what_else(self) -> None:
        """Print how to look further."""
        same = ""
        if os.environ.get("DBTASKS_DATABASE"):
            same = " (with DBTASKS_DATABASE set to the same URL)"
        self.stdout.write(
            f"\nLook further{same}:\n"
            "  uv run manage.py createsuperuser\n"
            "  uv run manage.py serve -k         then open http://127.0.0.1:8000/\n"
            "  uv run manage.py taskrunner       runs what else is enqueued, until Ctrl-C"
        )

    def say_how_to_go_on(self, run: Run | None) -> None:
        """Print what is left, and that nothing is lost."""
        if run is None:
            text = "Stopped before anything was enqueued."
        else:
            text = f"Not all is done, but nothing is lost: {in_words(run)}"
        self.stdout.write(f"\n{text} Start the same command again to go on.")


class Interrupts:
    """Keeps the signals that end a command for the places where it can end.

    What runs in a process of its own is told each of them, once. Without such a process, the
    second one ends this one at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.signal(number, self.take) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal, and hand it on."""
        self.received.append(number)
        if self.child is not None:
            self.child.send_signal(number)
        elif len(self.received) > 1:
            raise KeyboardInterrupt

    def call(self, *arguments: list) -> int:
        """Run Python with the arguments until it ends; return its exit code."""
        command = [sys.executable, *(str(part) for parts in arguments for part in parts)]
        # Held back until the child can take them: it would die of a signal while it starts. In a
        # session of its own it gets a Ctrl-C from us only, not from the terminal as well.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.child = subprocess.Popen(command, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            return self.child.wait()
        finally:
            self.child = None


def use_database(url: str) -> None:
    """Start this process again with that database, unless it has it already."""
    if os.environ.get("DBTASKS_DATABASE") == url:
        return
    try:
        module, extra = DRIVERS[database(url)["ENGINE"]]
    except (ValueError, KeyError):
        raise CommandError(
            "--database names no database. Use postgres://USER:PASSWORD@HOST:PORT/NAME, "
            "mysql://USER:PASSWORD@HOST:PORT/NAME or sqlite:////PATH."
        ) from None
    if find_spec(module) is None:
        raise CommandError(
            f"The driver of that database is missing. Use: uv run --extra {extra} manage.py demo …"
        )
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, os.environ | {"DBTASKS_DATABASE": url})


def in_words(run: Run) -> str:
    """Return how far the run is, as a sentence."""
    statuses = run.statuses()
    done = statuses.get("SUCCESSFUL", 0) + statuses.get("FAILED", 0)
    text = f"{done:,} of {plural(max(run.files, len(run.names)), 'file')} done"
    if waiting := statuses.get("READY", 0):
        text += f", {waiting:,} enqueued"
    if running := statuses.get("RUNNING", 0):
        text += f", {running:,} still held by a runner"
    return f"{text}."


def in_bytes(size: float) -> str:
    """Return the size as people read it."""
    return filesizeformat(size).replace("\xa0", " ")


def in_column(name: str) -> str:
    """Return the end of the file's name that fits a column of 44, fit for a terminal."""
    text = printable(as_name(name), 1000)
    return text if len(text) <= 42 else f"…{text[-41:]}"
