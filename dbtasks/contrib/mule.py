"""A runner in a mule of uWSGI: ``mule = dbtasks.contrib.mule:taskrunner``.

Owns what is special about a mule: it is forked from a process that may have open connections, and
uWSGI's master sends it signals. Never relies on these signals: another runner requeues the rows of
a mule that was killed.
"""

import os
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import connections

from ..exceptions import RunnerError

if TYPE_CHECKING:
    from ..runner.runner import Runner

# Seconds before a mule that could not start ends, because uWSGI starts another without a pause.
PAUSE = 10.0

# Connections of the parent process, which this process must not close.
_left: list[Any] = []


def taskrunner() -> None:
    """Run tasks in the uWSGI mule that calls this function, until it is stopped or reloaded.

    Environment variables configure the runner, as in other servers. If it cannot start, the mule
    prints the reason on standard error and ends after ten seconds; uWSGI then starts another.
    """
    try:
        _read_environment()
        if settings.configured:
            _leave_connections()
        _set_up()
        runner, code = _run()
    except (CommandError, ImproperlyConfigured, RunnerError) as error:
        _wait(f"The mule runs no tasks: {error} Another try in {PAUSE:.0f} s.")
    except Exception:  # whatever a project raises, uWSGI would not report it
        _wait(f"{traceback.format_exc()}The mule runs no tasks. Another try in {PAUSE:.0f} s.")
    else:
        if runner.released or runner.abandoned_threads or code:
            from ..processes.run import leave

            # Do not wait for abandoned threads, which may still hang in a task.
            leave(code)


def _run() -> "tuple[Runner, int]":
    # Imported here, because models need Django's apps.
    from .embedded import MasterSignals, configured, run

    return run(configured(), "a uWSGI mule", listen=MasterSignals)


def _wait(why: str) -> None:
    print(why, file=sys.stderr, flush=True)
    time.sleep(PAUSE)


def _read_environment() -> None:
    """Set the variables of the ``env`` lines in uWSGI's configuration.

    Under pyuwsgi they are set too late: Python has already read the environment.
    """
    import uwsgi

    lines = uwsgi.opt.get("env", [])
    for line in lines if isinstance(lines, list) else [lines]:
        name, _, value = os.fsdecode(line).partition("=")
        os.environ[name] = value


def _set_up() -> None:
    """Load Django's apps, unless the application has done so before the fork."""
    if apps.ready:
        return
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        raise ImproperlyConfigured(
            "DJANGO_SETTINGS_MODULE is not set, and no application has set it here. Add "
            "'env = DJANGO_SETTINGS_MODULE=mysite.settings' to uWSGI's configuration."
        )
    django.setup()


def _leave_connections() -> None:
    """Close the connections opened before the fork, without a message to the database servers.

    The parent process still uses the connections, and such a message would end its sessions.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for connection in connections.all(initialized_only=True):
        raw = connection.connection
        if pools := getattr(connection, "_connection_pools", None):
            # A fork does not copy a pool's threads. The pool is kept, because to close it would
            # be to wait for them.
            _left.append((raw, *pools.values()))
            pools.clear()
            connection.connection = None
            continue
        if raw is not None and hasattr(raw, "fileno"):
            with suppress(Exception):  # whatever a driver raises if its connection is closed
                os.dup2(nowhere, raw.fileno(), inheritable=False)
        # SQLite has no server. Closed before it is opened again, it forgets the parent's locks.
        connection.close()
    os.close(nowhere)
