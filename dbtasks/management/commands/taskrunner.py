"""``manage.py taskrunner``: run tasks in this process until stopped."""

import os
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import checks, cli, registry
from ...exceptions import RunnerError
from ...leash import Leash
from ...reload import Reloader, watch
from ...report import Report, Screen, banner, log_output
from ...runner import Runner
from ...supervisor import Orders, Supervisor, alike, command_line

SIGNALS = """\
Signals: the first SIGTERM or SIGINT (Ctrl-C) gives back what has not started and waits --grace
seconds for what runs; the second leaves now. SIGHUP counts as SIGTERM, unless under nohup. SIGQUIT
(Ctrl-\\) prints where each thread is.

Exit codes: 0 stopped as asked, or drained; 1 could not start; 2 wrong flag; 3 --drain, and a task
failed; 5 grace ran out, running tasks were given back; 6 too many threads hang in tasks that were
written off at their timeout, another runner has to take its place; 128 + n left by a second signal
n.

With --processes the signals reach all of them through the first, once each; --workers, --max-tasks
and --drain count in each. One that dies is replaced, after a pause if it dies again soon. The exit
code is the worst of theirs: 128 + n, then 5, then 3, then 0; or 1 if one could never start.

With --reload the runner is a process of its own, that stops in its --grace and starts anew when a
file changes; one that cannot start, for a mistake in the code, waits for the next change."""


class Command(BaseCommand):
    """Run a Runner, and say what it does."""

    help = "Runs the tasks of a database backend until stopped."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, epilog=SIGNALS, **kwargs)
        parser.formatter_class = cli.formatter(parser.formatter_class)
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
            "--processes",
            type=cli.whole("number of processes", 1, 256),
            default=1,
            metavar="N",
            help="Processes, each with so many threads, that another supervises (default: 1).",
        )
        parser.add_argument(
            *("-i", "--worker-id"),
            type=cli.worker_name,
            metavar="ID",
            help="Start of the worker's name; something random is added (default: host and pid).",
        )
        cli.add_backend(parser, "Alias in TASKS whose tasks are run (default: default).")
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
            "--no-periodic",
            action="store_false",
            dest="init_periodic",
            help="Fire no schedules: run what others enqueue.",
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
            "--reload",
            action="store_true",
            help="Start anew, after --grace at most, whenever code or a template changes.",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="Print JSON objects, one a line, instead of text.",
        )

    def handle(self, **options: Any) -> None:
        leash = _leash()
        try:
            self._handle(leash, options)
        except CommandError as error:
            if leash is None:
                raise
            # Said once, by the supervisor.
            leash.tell("failed", str(error))
            raise SystemExit(error.returncode) from error

    def _handle(self, leash: Leash | None, options: dict[str, Any]) -> None:
        backend = cli.one_backend(options["backend"])
        cli.check_queues(backend, options["queues"])
        cli.check_database(backend.database)
        # Elsewhere the tasks of other modules still run; here somebody is about to mend these.
        if leash and options["reload"] and (failed := registry.discover()):
            raise CommandError(" ".join(failed))
        verbosity, as_json = options["verbosity"], options["as_json"]
        process = leash.number if leash and options["processes"] > 1 else None
        screen = Screen(self.stderr, f"#{process} " if process and not as_json else "")
        style = self.style if screen.isatty() else None
        report = Report(
            self.stdout, screen, verbosity=verbosity, as_json=as_json, style=style, process=process
        )
        runner = _runner(report, options, leash)
        warning = cli.small_pool(backend.database, runner.workers)
        if warning and leash is None:
            report.say(warning, event="warning")
        called = getattr(self, "_called_from_command_line", False)
        with log_output(screen, verbosity, as_json, process):
            try:
                if leash is not None:
                    text = f"Worker {{worker_id}} started, pid {os.getpid()}."
                    code = cli.run(runner, report, text, partial(Orders, leash=leash))
                elif options["processes"] > 1 or options["reload"]:
                    text = banner(runner, backend, options["processes"])
                    code = _supervise(options, runner, report, text, called)
                else:
                    code = cli.run(runner, report, banner(runner, backend))
            except (ImproperlyConfigured, RunnerError) as error:
                raise CommandError(str(error)) from error
        # Threads that were given up may still hold on to a task: nobody waits for them.
        if called and (runner.abandoned or runner.stuck or code > 128):
            cli.leave(code)
        if code:
            raise SystemExit(code)


def _leash() -> Leash | None:
    try:
        return Leash.held()
    except RunnerError as error:
        raise CommandError(str(error)) from error


def _supervise(
    options: dict[str, Any], runner: Runner, report: Report, text: str, called: bool
) -> int:
    """Run processes like this runner; return their exit code."""
    if not called:
        raise CommandError(
            "--processes and --reload start their command line once more for each process, and "
            "call_command() has none. Run 'manage.py taskrunner', or leave them out."
        )
    ends = runner.drain or runner.max_tasks is not None
    if ends and options["reload"]:
        raise CommandError(
            "--reload waits for changes for ever. Leave out --drain and --max-tasks, or --reload."
        )
    # Processes live long, and this one needs the database no more.
    cli.disconnect()
    children = alike(options["processes"], command_line())
    supervisor: Supervisor
    if options["reload"]:
        supervisor = Reloader(children, watch, grace=runner.grace, say=report.say)
    else:
        supervisor = Supervisor(children, grace=runner.grace, ends=ends, say=report.say)
    return supervisor.run(text)


def _runner(report: Report, options: dict[str, Any], leash: Leash | None) -> Runner:
    name = options["worker_id"]
    try:
        return Runner(
            options["workers"],
            leash.name(name) if leash and options["processes"] > 1 else name,
            options["backend"],
            options["delay"],
            options["init_periodic"],
            options["queues"],
            grace=options["grace"],
            drain=options["drain"],
            max_tasks=options["max_tasks"],
            report=report,
            joined=leash.joined if leash else None,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
