"""``manage.py taskrunner``: run tasks in this process until stopped."""

import os
import sys
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser

from ...base import registry
from ...console import flags, preflight
from ...console.banner import banner
from ...console.command import TasksCommand
from ...console.logs import log_output
from ...console.report import Report
from ...console.terminal import Terminal
from ...db.connections import disconnect
from ...exceptions import RunnerError
from ...options import values
from ...options.runner import FLAGS
from ...processes.child import command_line, replicas
from ...processes.link import SupervisorLink
from ...processes.reload import Reloader, watch
from ...processes.run import SupervisedSignals, leave, leave_if_stalled, run
from ...processes.supervisor import Supervisor
from ...processes.waiting import default_wait, wait_for_database
from ...runner.runner import Runner

SIGNALS = """\
Signals: after the first SIGTERM or SIGINT (Ctrl-C) the runner requeues tasks that have not started
and waits up to --grace seconds for running ones; after the second it leaves at once. SIGHUP counts
as SIGTERM, except under nohup. SIGQUIT (Ctrl-\\) prints where each thread is.

Exit codes: 0 stopped as asked, or drained; 1 could not start; 2 invalid flag; 3 drained, and a task
failed; 5 running tasks were requeued at the end of the grace; 6 too many threads hang in abandoned
tasks, so another runner must take over; 128 + n left at once after a second signal n.

With --processes, the first process passes signals on to the others; a signal that they receive
themselves as well counts once. --workers, --max-tasks and --drain apply to each process. A process
that dies is replaced, after a pause if it dies again soon. The exit code is the worst of all:
128 + n, then 5, then 3, then 0; or 1 if one could never start.

With --reload the runner is a process of its own. When a file changes, it stops within --grace, and
a new one starts. If that one cannot start because of a mistake in the code, another one starts at
the next change."""


class Command(TasksCommand):
    """Run a Runner and report what it does."""

    help = "Runs the tasks of a database backend until it is stopped."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, epilog=SIGNALS, **kwargs)
        parser.formatter_class = flags.formatter(parser.formatter_class)
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        flags.add_runner_options(parser)
        flags.add_wait(parser)
        parser.add_argument(
            "--processes",
            type=values.whole("number of processes", 1, 256),
            default=1,
            metavar="N",
            help="Processes under a supervisor, each with its own --workers (default: 1).",
        )
        parser.add_argument(
            "--reload",
            action="store_true",
            help="Restart, within --grace, when code or a template changes.",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="Print JSON objects, one per line, instead of text.",
        )

    def handle(self, **options: Any) -> None:
        link = _link()
        try:
            self._handle(link, options)
        except (CommandError, preflight.DatabaseNotReady) as error:
            if link is None:
                raise CommandError(str(error)) from error
            # The supervisor prints it, once.
            link.send("failed", str(error), isinstance(error, preflight.DatabaseNotReady))
            raise SystemExit(1) from error

    def _handle(self, link: SupervisorLink | None, options: dict[str, Any]) -> None:
        _check_platform(options)
        backend = preflight.one_backend(options["backend"])
        preflight.check_queues(backend, options["queues"], options["exclude_queues"])
        verbosity, as_json = options["verbosity"], options["as_json"]
        process = link.number if link and options["processes"] > 1 else None
        report = self._report(options, process)
        wait = default_wait() if options["wait"] is None else options["wait"]
        # A supervisor starts a process again that cannot use its database yet.
        wait_for_database(backend.database, 0.0 if link else wait, report.say)
        # An import error is fatal only with --reload, when somebody is editing the code. Without
        # it, the tasks of other modules still run.
        if link and options["reload"]:
            failed = registry.discover(backend.config.task_modules)
            if failed:
                raise CommandError(" ".join(failed))
        runner = _runner(options, link)
        warning = preflight.small_pool(backend.database, runner.options.workers)
        if warning and link is None:
            report.say(warning, event="warning")
        called = getattr(self, "_called_from_command_line", False)
        if called:
            leave_if_stalled(runner)
        with log_output(report.err, verbosity, as_json, process):
            try:
                code = _run(options, link, runner, report, called)
            except (ImproperlyConfigured, RunnerError) as error:
                raise CommandError(str(error)) from error
        # Do not wait for abandoned threads, which may still hang in a task.
        if called and (runner.released or runner.abandoned_threads or code > 128):
            leave(code)
        if code:
            raise SystemExit(code)

    def _report(self, options: dict[str, Any], process: int | None) -> Report:
        as_json = options["as_json"]
        terminal = Terminal(self.stderr, f"#{process} " if process and not as_json else "")
        return Report(
            self.stdout,
            terminal,
            verbosity=options["verbosity"],
            as_json=as_json,
            style=self.style if terminal.isatty() else None,
            process=process,
        )


def _check_platform(options: dict[str, Any]) -> None:
    """Raise CommandError if an option does not work on this system."""
    if sys.platform == "win32" and (options["processes"] > 1 or options["reload"]):
        raise CommandError(
            "--processes and --reload need a POSIX system, such as Linux or macOS. On Windows, "
            "start as many runners as you like, and restart them yourself."
        )


def _link() -> SupervisorLink | None:
    try:
        return SupervisorLink.inherited()
    except RunnerError as error:
        raise CommandError(str(error)) from error


def _run(
    options: dict[str, Any],
    link: SupervisorLink | None,
    runner: Runner,
    report: Report,
    called: bool,
) -> int:
    """Run the runner, here or in processes; return the exit code."""
    if link is not None:
        text = f"Worker {{worker_id}} started, pid {os.getpid()}."
        if options["reload"] and report.is_brief:
            # The supervisor names the first one. Later ones start at each change.
            text = ""
        return run(runner, report, text, partial(SupervisedSignals, link=link))
    backend = preflight.one_backend(runner.options.backend)
    if options["processes"] > 1 or options["reload"]:
        text = banner(runner, backend, options["processes"])
        return _supervise(options, runner, report, text, called)
    return run(runner, report, banner(runner, backend))


def _supervise(
    options: dict[str, Any], runner: Runner, report: Report, text: str, called: bool
) -> int:
    """Run the runner in processes under a supervisor; return the exit code."""
    if not called:
        raise CommandError(
            "--processes and --reload start their command line once more for each process, and "
            "call_command() has none. Run 'manage.py taskrunner', or leave them out."
        )
    own = runner.options
    ends = own.drain or own.max_tasks is not None
    if ends and options["reload"]:
        raise CommandError(
            "--reload waits for changes for ever. Leave out --drain and --max-tasks, or --reload."
        )
    # The supervisor lives long, and does not need the database any more.
    disconnect()
    children = replicas(options["processes"], command_line(), has_terminal=options["reload"])
    supervisor: Supervisor
    if options["reload"]:
        supervisor = Reloader(children, watch, grace=own.grace, say=report.say)
    else:
        supervisor = Supervisor(children, grace=own.grace, ends=ends, say=report.say)
    return supervisor.run(text)


def _runner(options: dict[str, Any], link: SupervisorLink | None) -> Runner:
    chosen = {name: options[name] for name in FLAGS}
    if link and options["processes"] > 1:
        chosen["worker_id"] = link.name(chosen["worker_id"])
    try:
        return Runner(**chosen)
    except ValueError as error:
        raise CommandError(str(error)) from error
