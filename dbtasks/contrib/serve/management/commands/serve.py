"""``manage.py serve``: the site on Granian, a task runner beside it, reload of both."""

import os
import sys
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    SystemCheckError,
)

from .....console import flags
from .....console.terminal import plural
from .....db.connections import disconnect
from .....exceptions import RunnerError
from .....options import values
from .....options.runner import default_workers
from .....processes.child import Child, command_line
from .....processes.reload import Reloader
from .....processes.supervisor import Supervisor
from .....processes.waiting import SUPERVISED_WAIT
from ... import address as addresses
from ... import variables
from ...web import WebOptions

NOTES = """\
Signals: the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP stops web server and runner at the same time.
Requests and running tasks may finish within --grace (requests within a second, with -r). The second
signal ends them at once; the next runner starts these tasks again.

Environment: GRANIAN_HOST, GRANIAN_PORT or PORT, GRANIAN_UDS, GRANIAN_WORKERS or WEB_CONCURRENCY,
GRANIAN_BLOCKING_THREADS, GRANIAN_LOG_ACCESS_ENABLED, GRANIAN_LOG_LEVEL, GRANIAN_BACKLOG,
GRANIAN_BACKPRESSURE, GRANIAN_URL_PATH_PREFIX, GRANIAN_SSL_CERTIFICATE, GRANIAN_SSL_KEYFILE,
GRANIAN_WORKERS_LIFETIME. Flags win over them."""

WORKERS = values.whole("number of workers", 1, 256)
WEB_THREADS = values.whole("number of threads", 1, 1000)
# Threads of a worker, for WSGI. With more, Granian prints a warning at each start.
THREADS = min(8, 2 * (os.cpu_count() or 1) + 1)
LEVELS = ("critical", "error", "warning", "info", "debug", "notset")


class Command(BaseCommand):
    """Supervise a web server and a runner, each in a process of its own."""

    help = "Runs the site on Granian; with -k also a task runner; with -r reloads changed code."
    # Run below, because with -r a failed check is printed and does not prevent the start.
    requires_system_checks: Any = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, epilog=NOTES, **kwargs)
        parser.formatter_class = flags.formatter(parser.formatter_class)
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "addrport",
            nargs="?",
            default="",
            help="PORT, HOST or HOST:PORT (default: 127.0.0.1:8000; in a container 0.0.0.0:8000). "
            "Write it before -k and -r.",
        )
        _add_web(parser)
        _add_runner(parser)

    def handle(self, **options: Any) -> None:
        if sys.platform == "win32":
            raise CommandError(
                "serve needs a POSIX system, such as Linux or macOS. On Windows, run 'manage.py "
                "runserver' and 'manage.py taskrunner' side by side."
            )
        if find_spec("granian") is None:
            raise CommandError(
                "serve needs Granian, which is not installed. Run: pip install 'dbtasks[serve]'"
            )
        web = _web_options(options)
        if trouble := web.address.trouble():
            raise CommandError(trouble)
        folders = _folders(options["reload"])
        self._check(is_fatal=folders is None)
        # With -r somebody writes code, and may want to debug it.
        debug = {"has_terminal": web.reload}
        children = [Child(1, "The web server", _web_command(web), reloads=web.reload, **debug)]
        if options["tasks"]:
            children.append(Child(2, "The task runner", _runner_command(options), **debug))
        # The processes open connections of their own.
        disconnect()
        try:
            code = self._supervisor(children, folders, options).run(_banner(web, options, folders))
        except RunnerError as error:
            raise CommandError(str(error)) from error
        if code:
            raise SystemExit(code)

    def _check(self, *, is_fatal: bool) -> None:
        try:
            self.check(display_num_errors=True)
        except SystemCheckError as error:
            if is_fatal:
                raise
            self.stderr.write(str(error))

    def _supervisor(
        self, children: list[Child], folders: list[Path] | None, options: dict[str, Any]
    ) -> Supervisor:
        def say(text: str, **fields: Any) -> None:
            self.stderr.write(text, self.style.NOTICE)
            self.stderr.flush()

        if folders is None:
            # The runner of a site is always under a supervisor: this one.
            wait = SUPERVISED_WAIT if options["wait"] is None else options["wait"]
            return Supervisor(children, grace=options["grace"], ends=False, say=say, wait=wait)
        from ...watch import watching

        aside = [Path(path) for path in (settings.MEDIA_ROOT, settings.STATIC_ROOT) if path]
        watch = watching(folders, aside)
        return Reloader(children, watch, grace=options["grace"], say=say)


def _add_web(parser: CommandParser) -> None:
    group = parser.add_argument_group("web server")
    group.add_argument("-a", "--address", metavar="ADDR", help="Host to listen at.")
    group.add_argument("-p", "--port", type=int, metavar="PORT", help="Port to listen at.")
    group.add_argument("--uds", metavar="PATH", help="Unix socket to listen at instead.")
    group.add_argument(
        *("-w", "--workers"),
        type=WORKERS,
        metavar="N",
        help="Processes that serve requests (default: 1).",
    )
    group.add_argument(
        *("-t", "--threads"),
        type=WEB_THREADS,
        metavar="N",
        help=f"Threads of each process, for WSGI (default: here {THREADS}).",
    )
    _add_serving(group)


def _add_serving(group: Any) -> None:
    group.add_argument(
        "--interface",
        choices=["auto", "wsgi", "asgi"],
        default="auto",
        help="auto is ASGI if ASGI_APPLICATION is set, else WSGI.",
    )
    group.add_argument(
        "--no-static",
        action="store_false",
        dest="static",
        help="Do not serve static files (default: serve them with DEBUG and staticfiles).",
    )
    group.add_argument(
        "--access-log",
        action=BooleanOptionalAction,
        default=None,
        help="Log each request (default: only with DEBUG).",
    )
    group.add_argument(
        *("-r", "--reload"),
        nargs="*",
        metavar="PATH",
        help="Restart web server and runner when code in these folders changes "
        "(default: the project's folder).",
    )


def _add_runner(parser: CommandParser) -> None:
    group = parser.add_argument_group("task runner")
    threads = default_workers()
    group.add_argument(
        *("-k", "--tasks"),
        nargs="?",
        type=_threads,
        const=threads,
        metavar="THREADS",
        help=f"Also run tasks, in this many threads (default: here {threads}).",
    )
    flags.add_runner_options(
        group,
        *("worker_id", "backend", "loop_delay", "init_periodic", "grace"),
        *("queues", "exclude_queues"),
        backend={"names": ("-b", "--backend")},
        loop_delay={"names": ("--delay",)},
        grace={"meaning": "Seconds that requests and running tasks may take at a stop or reload."},
    )
    flags.add_wait(group, otherwise="60; no limit with -r")


def _threads(text: str) -> int:
    try:
        return values.whole("number of threads", 1, 1000)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error} Write an address before -k: serve {text} -k") from None


def _web_options(options: dict[str, Any]) -> WebOptions:
    environment = os.environ
    try:
        address = addresses.parse(options["addrport"], environment)
        if options["uds"]:
            address = addresses.Address(uds=options["uds"])
        elif options["address"] or options["port"] is not None:
            port = address.port if options["port"] is None else options["port"]
            address = addresses.make(options["address"] or address.host, port)
        workers = variables.read(environment, WORKERS, "GRANIAN_WORKERS", "WEB_CONCURRENCY")
        threads = variables.read(environment, WEB_THREADS, "GRANIAN_BLOCKING_THREADS")
        level = environment.get("GRANIAN_LOG_LEVEL") or _level(options["verbosity"])
        if level not in LEVELS:
            raise ValueError(f"GRANIAN_LOG_LEVEL={level!r} must be one of {', '.join(LEVELS)}.")
        return WebOptions(
            address,
            _interface(options["interface"]),
            options["workers"] or workers or 1,
            options["threads"] or threads or THREADS,
            round(options["grace"]),
            static=options["static"] and apps.is_installed("django.contrib.staticfiles"),
            reload=options["reload"] is not None,
            access_log=_has_access_log(options["access_log"], environment),
            log_level=level,
            more=variables.arguments(environment),
            files=variables.files(environment),
            path=sys.path[0],
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _level(verbosity: int) -> str:
    return "info" if verbosity > 1 else "warning"


def _has_access_log(flag: bool | None, environment: Mapping[str, str]) -> bool:
    if flag is None:
        flag = variables.read(environment, values.switch, "GRANIAN_LOG_ACCESS_ENABLED")
    return settings.DEBUG if flag is None else flag


def _interface(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    # startproject sets WSGI_APPLICATION in every project, so this one is set on purpose.
    return "asgi" if getattr(settings, "ASGI_APPLICATION", None) else "wsgi"


def _folders(paths: list[str] | None) -> list[Path] | None:
    """Return the folders to watch, None without -r; raise CommandError if one does not exist."""
    if paths is None:
        return None
    if find_spec("watchfiles") is None:
        raise CommandError(
            "-r needs watchfiles, which is not installed. Run: pip install 'dbtasks[serve]'"
        )
    if not paths:
        return [Path(getattr(settings, "BASE_DIR", None) or Path.cwd())]
    for path in paths:
        if not Path(path).is_dir():
            raise CommandError(
                f"There is no folder {path!r} to watch. Write an address before -r: serve {path} -r"
            )
    return [Path(path) for path in paths]


def _web_command(web: WebOptions) -> list[str]:
    return [sys.executable, "-m", "dbtasks.contrib.serve.web", web.dump()]


def _runner_command(options: dict[str, Any]) -> list[str]:
    """Return the command line of ``taskrunner``, started as this command was."""
    own = command_line()
    start = own[: own.index("serve")] if "serve" in own else [own[0], "-m", "django"]
    command = [*start, "taskrunner", "-w", str(options["tasks"]), "--backend", options["backend"]]
    command += ["--delay", str(options["loop_delay"]), "--grace", str(options["grace"])]
    command += ["-v", str(options["verbosity"])]
    for flag, names in (("-q", options["queues"]), ("-x", options["exclude_queues"])):
        command += [word for name in names or () for word in (flag, name)]
    if options["worker_id"]:
        command += ["-i", options["worker_id"]]
    if not options["init_periodic"]:
        command.append("--no-periodic")
    if options["reload"] is not None:
        # This process watches the files and has run the checks. In the runner the flag only makes
        # import errors of task modules fatal, so that it does not fail the tasks in them.
        command += ["--reload", "--skip-checks"]
    if options["pythonpath"]:
        command += ["--pythonpath", options["pythonpath"]]
    return command


def _banner(web: WebOptions, options: dict[str, Any], folders: list[Path] | None) -> str:
    url = web.address.url("https" if "ssl_cert" in web.files else "http")
    lines = [f"{url} ({web.interface.upper()}, {plural(web.workers, 'worker')})"]
    if web.address.is_loopback and addresses.in_container(os.environ):
        lines.append(
            "Only this container can reach that address. Write 0:8000 to serve the outside too."
        )
    if options["tasks"]:
        lines.append(f"A task runner with {plural(options['tasks'], 'thread')}")
    if folders:
        lines.append(f"Reloads changed code in {', '.join(map(str, folders))}")
    return "\n".join([*lines, "Stop with Ctrl-C."])
