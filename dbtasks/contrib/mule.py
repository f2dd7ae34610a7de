"""A runner in a mule of uWSGI: ``mule = dbtasks.contrib.mule:taskrunner``.

Owns what is peculiar to a mule: a fork of a process that may have connections, and signals that
come from uWSGI's master. Never relies on them: another runner rescues
the rows of a mule that was killed.
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

# Seconds before a mule that could not start ends: uWSGI starts another without a pause.
PAUSE = 10.0

# What this process must not close.
_left: list[Any] = []


def taskrunner() -> None:
    """Run tasks until uWSGI stops or reloads its mules; uWSGI calls it in the mule.

    The environment configures it, as it does all runners in other servers.
    """
    try:
        _read_environment()
        if settings.configured:
            _leave_connections()
        _set_up()
        runner, code = _run()
    except (CommandError, ImproperlyConfigured, RunnerError) as error:
        _wait(f"The mule runs no tasks: {error} Another try in {PAUSE:.0f} s.")
    except Exception:  # uWSGI would say nothing of whatever a project raises
        _wait(f"{traceback.format_exc()}The mule runs no tasks. Another try in {PAUSE:.0f} s.")
    else:
        if runner.released or runner.abandoned_threads or code:
            from ..processes.run import leave

            # Abandoned threads may still hang in a task: nobody waits for them.
            leave(code)


def _run() -> "tuple[Runner, int]":
    # Imported late: models need Django's apps.
    from .embedded import MasterSignals, configured, run

    return run(configured(), "a uWSGI mule", listen=MasterSignals)


def _wait(why: str) -> None:
    print(why, file=sys.stderr, flush=True)
    time.sleep(PAUSE)


def _read_environment() -> None:
    """Take over what lines with ``env`` in uWSGI's configuration set.

    Under pyuwsgi they come too late for Python, which has read the environment by then.
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
    """Close what was opened before the fork, without a word to the servers at the other ends.

    The process that opened it goes on with it, and would see its session end.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for connection in connections.all(initialized_only=True):
        raw = connection.connection
        if pools := getattr(connection, "_connection_pools", None):
            # A pool's threads have stayed behind: it is kept, so that nobody waits for their end.
            _left.append((raw, *pools.values()))
            pools.clear()
            connection.connection = None
            continue
        if raw is not None and hasattr(raw, "fileno"):
            with suppress(Exception):  # whatever a driver raises whose connection is closed already
                os.dup2(nowhere, raw.fileno(), inheritable=False)
        # SQLite has no server: closed before it is opened anew, it forgets locks it does not have.
        connection.close()
    os.close(nowhere)
