"""``manage.py taskrunner``: run tasks in this process until stopped."""

from argparse import RawDescriptionHelpFormatter
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import checks, cli
from ...backend import DatabaseBackend
from ...exceptions import RunnerError
from ...report import Report, Screen, banner, log_output
from ...runner import Runner, check_backend

SIGNALS = """\
Signals: the first SIGTERM or SIGINT (Ctrl-C) gives back what has not started and waits --grace
seconds for what runs; the second leaves now.

Exit codes: 0 stopped as asked, or drained; 1 could not start; 2 wrong flag; 3 --drain, and a task
failed; 5 grace ran out, running tasks were given back; 128 + n left by a second signal n."""


class Command(BaseCommand):
    """Run a Runner, and say what it does."""

    help = "Runs the tasks of a database backend until stopped."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, epilog=SIGNALS, **kwargs)
        parser.formatter_class = _formatter(parser.formatter_class)
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        workers, count = checks.default_workers(), cli.whole("number of threads", 1, 1000)
        parser.add_argument(
            *("-w", "--workers", "-t", "--threads"),
            type=count,
            default=workers,
            metavar="N",
            help=f"Threads that run tasks (default: the CPUs but one, here {workers}).",
        )
        parser.add_argument(
            *("-i", "--worker-id"),
            type=cli.worker_name,
            metavar="ID",
            help="Start of the worker's name; something random is added (default: host and pid).",
        )
        parser.add_argument(
            "--backend",
            default="default",
            metavar="ALIAS",
            help="Alias in TASKS whose tasks are run (default: default).",
        )
        parser.add_argument(
            *("-q", "--queue"),
            action="append",
            dest="queues",
            metavar="NAME",
            help="Run tasks of this queue only; may be repeated (default: all queues).",
        )
        parser.add_argument(
            *("--delay", "--interval"),
            type=cli.seconds("delay", 0.01, 3600),
            default=1.0,
            metavar="S",
            help="Longest idle wait between two looks at the queue, in seconds (default: 1).",
        )
        parser.add_argument(
            "--grace",
            type=cli.seconds("time of grace", 0, 86_400),
            default=30.0,
            metavar="S",
            help="Seconds that running tasks get after the first signal (default: 30).",
        )
        parser.add_argument(
            "--drain", action="store_true", help="Stop when no task is due or running."
        )
        parser.add_argument(
            "--max-tasks",
            type=cli.whole("number of tasks", 1, 10**12),
            metavar="N",
            help="Stop after so many tasks (default: go on).",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="Print JSON objects, one a line, instead of text.",
        )

    def handle(self, **options: Any) -> None:
        backend = _backend(options["backend"])
        cli.check_queues(backend, options["queues"])
        cli.check_database(backend.database)
        verbosity, as_json = options["verbosity"], options["as_json"]
        screen = Screen(self.stderr)
        style = self.style if screen.isatty() else None
        report = Report(self.stdout, screen, verbosity=verbosity, as_json=as_json, style=style)
        runner = _runner(report, options)
        if warning := cli.small_pool(backend.database, runner.workers):
            report.say(warning, event="warning")
        with log_output(screen, verbosity, as_json):
            try:
                code = cli.run(runner, report, banner(runner, backend))
            except (ImproperlyConfigured, RunnerError) as error:
                raise CommandError(str(error)) from error
        # Threads that were given up may still hold on to a task: nobody waits for them.
        called = getattr(self, "_called_from_command_line", False)
        if called and (runner.abandoned or code > 128):
            cli.leave(code)
        if code:
            raise SystemExit(code)


def _backend(alias: str) -> DatabaseBackend:
    try:
        return check_backend(alias)
    except (ImproperlyConfigured, RunnerError) as error:
        raise CommandError(str(error)) from error


def _runner(report: Report, options: dict[str, Any]) -> Runner:
    try:
        return Runner(
            options["workers"],
            options["worker_id"],
            options["backend"],
            options["delay"],
            options["queues"],
            grace=options["grace"],
            drain=options["drain"],
            max_tasks=options["max_tasks"],
            report=report,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _formatter(base: Any) -> Any:
    """Return the class with which help keeps the lines of its epilog as they are."""
    return type("HelpFormatter", (base, RawDescriptionHelpFormatter), {})
