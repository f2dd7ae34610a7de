"""The process that runs Granian.

Owns the web server: its workers, when it is ready, their reload, and its end. Never loads the
project: each worker does so after its start.

The supervisor runs it as ``python -m dbtasks.contrib.serve.web OPTIONS``, where OPTIONS is a
``WebOptions`` in JSON.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ...processes.link import SupervisorLink
from ...processes.signals import stop_signals, unblock
from .address import Address

# Modules of Django that workers need, and that can be imported without settings.
PRELOADED = (
    "django.contrib.admin.helpers",
    "django.contrib.auth.hashers",
    "django.contrib.staticfiles.handlers",
    "django.core.handlers.asgi",
    "django.core.mail",
    "django.core.servers.basehttp",
    "django.db.migrations.loader",
    "django.middleware.csrf",
    "django.template.backends.django",
    "django.template.loader_tags",
    "django.views.debug",
    "django.views.generic",
)
# The option of prctl with which a process receives a signal when its parent ends.
PR_SET_PDEATHSIG = 1
# Seconds between two checks whether the parent lives, where there is no such option.
PARENT_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class WebOptions:
    """The options of the web server."""

    address: Address
    interface: str
    workers: int
    threads: int
    grace: int
    # Whether static files are served as by runserver, and whether code is reloaded.
    static: bool
    reload: bool
    access_log: bool
    log_level: str
    # Further arguments of Granian, and those that are paths.
    more: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    # Where the project is imported from.
    path: str = ""

    def dump(self) -> str:
        """Return the options as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "WebOptions":
        """Return the options from the JSON of dump()."""
        values = json.loads(text)
        return cls(**values | {"address": Address(**values["address"])})


def main(text: str) -> None:
    """Serve until a signal or the supervisor stops it."""
    options = WebOptions.load(text)
    sys.path.insert(0, options.path)
    link = SupervisorLink.inherited()
    # Forked workers start in a third of the time, with all but the project's own code loaded. But
    # a fork copies the locks that other threads hold: a risk that only development may take.
    multiprocessing.set_start_method("fork" if options.reload else "spawn")
    if options.reload:
        preload()
    server = _server(options)
    hearing, telling = multiprocessing.Pipe(duplex=False)
    server.on_startup(partial(_started, link, hearing))
    load = partial(application, options, os.getpid(), telling)
    server.serve(target_loader=load, wrap_loader=False)
    if link is not None:
        link.send("done")


def preload() -> None:
    """Import what every project needs of Django and what needs no settings."""
    for name in PRELOADED:
        import_module(name)


def _server(options: WebOptions) -> Any:
    from granian import Granian
    from granian.constants import Interfaces
    from granian.log import LogLevels

    address = options.address
    is_wsgi = options.interface == "wsgi"
    files: dict[str, Any] = {name: Path(path) for name, path in options.files.items()}
    return Granian(
        "",
        address.host,
        address.port,
        uds=Path(address.uds) if address.uds else None,
        interface=Interfaces.WSGI if is_wsgi else Interfaces.ASGINL,
        workers=options.workers,
        blocking_threads=options.threads if is_wsgi else 1,
        websockets=not is_wsgi,
        log_level=LogLevels(options.log_level),
        log_access=options.access_log,
        # A worker that fails because of a mistake in edited code would fail again and again.
        respawn_failed_workers=not options.reload,
        # At a reload the new worker starts at once, not after a pause.
        respawn_interval=0.0 if options.reload else 3.5,
        # 0 would mean no limit.
        workers_kill_timeout=1 if options.reload else max(1, options.grace),
        **options.more,
        **files,
    )


def _started(link: SupervisorLink | None, hearing: Any) -> None:
    """Follow the supervisor, now that the server handles signals. Called before workers start."""
    # The supervisor has blocked them until now.
    unblock(stop_signals())
    if link is not None:
        threading.Thread(target=_obey, args=[link], daemon=True).start()
        threading.Thread(target=_tell_ready, args=[link, hearing], daemon=True).start()


def _obey(link: SupervisorLink) -> None:
    """Follow the supervisor's messages until it is gone, then stop. Runs in its own thread."""
    if sys.platform == "win32":  # the command refuses to start there
        return
    for what, *words in link.receive():
        if what == "reload":
            # Granian replaces its workers on SIGHUP.
            os.kill(os.getpid(), signal.SIGHUP)
        elif what == "stop":
            # Workers end with this process, however it ends.
            os.kill(os.getpid(), signal.SIGTERM if words[0] == 1 else signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)


def _tell_ready(link: SupervisorLink, hearing: Any) -> None:
    """Report each worker that has loaded the project. Runs in its own thread."""
    with suppress(EOFError):
        while True:
            hearing.recv()
            link.send("ready", "")


# In a worker


def application(options: WebOptions, server: int, telling: Any) -> Any:
    """Load the project in this worker of the server; return its application."""
    _end_with(server)
    if options.reload:
        # multiprocessing has replaced it by an empty file, in which breakpoint() reads nothing.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    import django

    django.setup(set_prefix=False)
    loaded = _wsgi() if options.interface == "wsgi" else _asgi()
    _check_urls()
    telling.send(os.getpid())
    return _with_static(loaded, options.interface) if options.static else loaded


def _check_urls() -> None:
    """Import the views now, so that an error in them is reported before the first request."""
    from django.urls import get_resolver

    _ = get_resolver().url_patterns


def _end_with(server: int) -> None:
    """Have this worker killed when its server ends, because nothing else would stop it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=[server], name="dbtasks-parent", daemon=True).start()
    if os.getppid() != server:
        os._exit(1)


def _watch(server: int) -> None:
    """End this process soon after its server. Runs in its own thread, where prctl is missing."""
    while os.getppid() == server:
        time.sleep(PARENT_INTERVAL)
    os._exit(1)


def _wsgi() -> Any:
    from django.core.servers.basehttp import get_internal_wsgi_application

    return get_internal_wsgi_application()


def _asgi() -> Any:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.utils.module_loading import import_string

    path = getattr(settings, "ASGI_APPLICATION", None)
    return import_string(path) if path else get_asgi_application()


def _with_static(loaded: Any, interface: str) -> Any:
    from django.conf import settings

    if not settings.DEBUG:
        return loaded
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler

    return (StaticFilesHandler if interface == "wsgi" else ASGIStaticFilesHandler)(loaded)


if __name__ == "__main__":
    main(sys.argv[1])
