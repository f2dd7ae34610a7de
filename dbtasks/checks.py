"""System checks, which report wrong settings before they do harm.

Owns the checks that look beyond a backend's own OPTIONS, at databases, queues and schedules. Never
opens a connection, so ``manage.py check`` works while the database is away.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, DEFAULT_TASK_QUEUE_NAME

from .backend import DatabaseBackend, check_backend, our_backends
from .base import registry
from .base.lengths import MAX_BACKEND, MAX_QUEUE
from .base.result import FINISHED
from .db.connections import pool_size
from .exceptions import RunnerError, TaskNotFound
from .firing import entries_of, problems
from .mounted import mounted
from .options import Options
from .options.runner import OWN_CONNECTIONS, default_workers
from .push import check_attributes
from .schedule import cron
from .schedule.periodic import declared
from .store import SUPPORTED
from .wakeup import can_wake, push_of

# The keys of a backend in TASKS.
KEYS = ("BACKEND", "QUEUES", "OPTIONS")


def check_backends(**kwargs: Any) -> list[CheckMessage]:
    """Return what is wrong with the databases and queues of our backends, in TASKS' order."""
    found: list[CheckMessage] = []
    backends = our_backends()
    if not backends:
        found += _check_use()
    for backend in backends:
        found += _check_names(backend)
        # The backend reports wrong options itself. With them the database is unknown.
        if not backend.check():
            found += _check_database(backend.database)
            found += _check_tasks(backend)
            found += _check_periodic(backend)
            found += _check_waker(backend)
            found += _check_push(backend)
    return found


def check_mounts(**kwargs: Any) -> list[CheckMessage]:
    """Return what is wrong with endpoints(), and an error for each push whose hints lead nowhere.

    Imports the project's URLs.
    """
    mounts = [each.mount for each in mounted()]
    found = [message for mount in mounts for message in mount.check()]
    for alias in dict.fromkeys(mount.backend for mount in mounts):
        found += _check_mounted(alias)
    for backend in our_backends():
        push = push_of(backend.alias)
        is_mounted = any(mount.backend == backend.alias for mount in mounts)
        if push is not None and push.needs_endpoints and not is_mounted:
            found.append(
                Error(
                    f"TASKS[{backend.alias!r}] has a push, but no endpoints() of this backend are "
                    "in ROOT_URLCONF: its hints lead nowhere.",
                    hint="Add path('tasks/', endpoints(auth=[…])) from dbtasks.contrib.http to the "
                    "URLs"
                    + ("." if backend.alias == "default" else f", with backend={backend.alias!r}."),
                    id="dbtasks.E023",
                )
            )
    return found


def _check_mounted(alias: str) -> Iterator[CheckMessage]:
    """Yield a warning if endpoints() of that backend can run nothing."""
    try:
        check_backend(alias)
    except ImproperlyConfigured:  # the backend's own checks say so
        return
    except RunnerError as error:
        yield Warning(
            f"endpoints() of the backend {alias!r} are in ROOT_URLCONF and answer each request "
            f"with 503: {error}",
            hint="Use DatabaseBackend without 'immediate' where requests come in, or take the "
            "endpoints out of the URLs.",
            id="dbtasks.W027",
        )


def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Return what is missing in production; for ``manage.py check --deploy``."""
    return [
        message
        for backend in our_backends()
        if (push := push_of(backend.alias)) is not None
        for message in push.check_deployment(backend.alias)
    ]


def _check_use() -> Iterator[CheckMessage]:
    yield Warning(
        "dbtasks is in INSTALLED_APPS, but no backend in TASKS uses it, so its runners have "
        "nothing to run.",
        hint="Set TASKS = {'default': {'BACKEND': 'dbtasks.backend.DatabaseBackend'}}.",
        id="dbtasks.W005",
    )


def _check_names(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    where = f"TASKS[{backend.alias!r}]"
    if len(backend.alias) > MAX_BACKEND:
        yield Error(
            f"The alias {backend.alias!r} has more than the {MAX_BACKEND} characters allowed.",
            hint="Give the backend a shorter alias in TASKS.",
            id="dbtasks.E003",
        )
    for name in settings.TASKS[backend.alias].keys() - set(KEYS):
        yield Warning(
            f"{where} has an unknown key {name!r}, which is ignored.",
            hint=_place_of(str(name)),
            id="dbtasks.W006",
        )
    queues: Any = settings.TASKS[backend.alias].get("QUEUES", [])
    if isinstance(queues, str) or not all(isinstance(name, str) and name for name in queues):
        yield Error(
            f"{where}['QUEUES'] must be a list of names, not {queues!r}.",
            hint="Write ['default', 'mail'], or [] to allow any name.",
            id="dbtasks.E004",
        )
        return
    for name in queues:
        if len(name) > MAX_QUEUE:
            yield Error(
                f"The queue name {name!r} has more than the {MAX_QUEUE} characters allowed.",
                hint=f"Give the queue a shorter name in {where}['QUEUES'].",
                id="dbtasks.E005",
            )
    # Tasks that name no queue name no backend either; those of another alias are written for it.
    is_default = backend.alias == DEFAULT_TASK_BACKEND_ALIAS
    if is_default and queues and DEFAULT_TASK_QUEUE_NAME not in queues:
        yield Warning(
            f"{where}['QUEUES'] does not contain {DEFAULT_TASK_QUEUE_NAME!r}: tasks without a "
            "queue_name are refused.",
            hint=f"Add {DEFAULT_TASK_QUEUE_NAME!r}, or give every task a queue_name.",
            id="dbtasks.W001",
        )


def _place_of(name: str) -> str:
    """Return where a misplaced or misspelt key of TASKS belongs."""
    known = [option.name for option in fields(Options)]
    if near := get_close_matches(name.lower(), known, 1):
        return f"Write it inside of OPTIONS, as {near[0]!r}."
    if near := get_close_matches(name.upper(), KEYS, 1):
        return f"Did you mean {near[0]!r}?"
    return f"The keys are {', '.join(map(repr, KEYS))}."


def _check_tasks(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    """Yield what is wrong with the modules of tasks, and with paths of tasks in the options."""
    where, options = f"TASKS[{backend.alias!r}]['OPTIONS']", backend.config
    for sentence in registry.discover(options.task_modules):
        yield Warning(
            f"{sentence}. Runners cannot run its tasks.",
            hint="Mend the module, or take it out of OPTIONS['task_modules'] if it is there.",
            id="dbtasks.W007",
        )
    for path in options.retain.rules.keys() - {"*", *FINISHED}:
        try:
            registry.find(path, options.task_modules)
        except TaskNotFound:
            near = get_close_matches(path, [task.module_path for task in registry.registered()], 1)
            yield Warning(
                f"{where}['retain'] has {path!r}, which is not a task.",
                hint=f"Did you mean {near[0]!r}?" if near else "Write the path of a task.",
                id="dbtasks.W008",
            )
    for task in registry.registered():
        path = task.module_path
        is_ours = task.backend == backend.alias and not options.immediate
        if is_ours and not registry.has_home(path, options.task_modules):
            yield Warning(
                f"{path!r} is a task that no runner will run; enqueue() refuses it.",
                hint=registry.WHERE_TASKS_ARE,
                id="dbtasks.W009",
            )


def _check_periodic(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    """Yield what is wrong with schedules. Modules of tasks must have been imported."""
    for sentence in problems(backend):
        yield Error(
            sentence,
            hint="Name a task, and arguments that it takes.",
            id="dbtasks.E010",
        )
    if backend.config.immediate and entries_of(backend):
        yield Warning(
            f"TASKS[{backend.alias!r}] is immediate: no runner serves it, so its schedules never "
            "fire.",
            hint="Move them to a backend that is not immediate.",
            id="dbtasks.W010",
        )
    for task in declared(backend.alias):
        path = task.module_path
        if not registry.is_known_to_runners(path, backend.config.task_modules):
            module = path.rpartition(".")[0]
            yield Warning(
                f"@periodic of {path!r} never fires: runners do not import {module!r} when they "
                "start.",
                hint=f"Move the task to a module 'tasks', import {module!r} there, or add it to "
                "OPTIONS['task_modules'].",
                id="dbtasks.W011",
            )
    for entry in backend.config.periodic.values():
        for said in cron.differences(entry.schedule.text):
            yield Info(
                f"TASKS[{backend.alias!r}]['OPTIONS']['periodic']: {entry.schedule.text!r} of "
                f"{entry.task_path}: {said}",
                hint="Nothing to do if that is meant; SILENCED_SYSTEM_CHECKS takes the id.",
                id="dbtasks.I001",
            )


def _check_waker(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    """Yield what is wrong with the option `wakeup`."""
    waker = backend.config.wakeup
    if waker is None:
        return
    where = f"TASKS[{backend.alias!r}]['OPTIONS']['wakeup']"
    if waker.package and not _is_installed(waker.package):
        yield Error(
            f"{where} needs the package {waker.package!r}, which is not installed.",
            hint=f"Run pip install 'dbtasks[{waker.extra}]'.",
            id="dbtasks.E022",
        )
    yield from waker.check(backend.alias)
    if can_wake(backend.database):
        yield Warning(
            f"{where} gains nothing: the database of {backend.alias!r} wakes runners itself.",
            hint="Remove it. If a pooler that shares sessions stands before PostgreSQL, set "
            "DISABLE_SERVER_SIDE_CURSORS to True, as Django needs it there.",
            id="dbtasks.W026",
        )


def _check_push(backend: DatabaseBackend) -> Iterator[CheckMessage]:
    """Yield what is wrong with the push. Modules of tasks must have been imported."""
    where, push = f"TASKS[{backend.alias!r}]['OPTIONS']", backend.config.push
    if push is None:
        return
    if backend.config.immediate:
        yield Error(
            f"{where} has 'immediate' and 'push': tasks run inside enqueue(), so there is nothing "
            "to send hints about.",
            hint="Remove one of them.",
            id="dbtasks.E021",
        )
        return
    if push.package and not _is_installed(push.package):
        yield Error(
            f"{where}['push'] needs the package {push.package!r}, which is not installed.",
            hint=f"Run pip install 'dbtasks[{push.extra}]'." if push.extra else "Install it.",
            id="dbtasks.E022",
        )
        return
    if isinstance(push.deadline, int | float):
        yield from _check_deadline(backend, where, push.deadline)
    if wrong := list(check_attributes(f"{where}['push']", push)):
        yield from wrong
        return
    yield from push.check(backend.alias)


def _check_deadline(
    backend: DatabaseBackend, where: str, deadline: float
) -> Iterator[CheckMessage]:
    timeouts = {f"{where}['timeout']": backend.config.timeout}
    for task in registry.registered():
        if task.backend == backend.alias:
            timeouts[f"The timeout of {task.module_path!r}"] = getattr(task, "timeout", None)
    for name, timeout in timeouts.items():
        if timeout is not None and deadline < timeout < math.inf:
            yield Warning(
                f"{name} is {timeout:g} seconds, but the service of {where}['push'] waits for an "
                f"answer for {deadline:g} seconds. Then it sends the hint again, while the task "
                "runs.",
                hint="Lower the timeout, or raise the deadline of the push.",
                id="dbtasks.W021",
            )


def _is_installed(module: str) -> bool:
    """Return whether the module could be imported. Imports at most its parent packages."""
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def _check_database(db: str) -> Iterator[CheckMessage]:
    connection = connections[db]
    where = f"DATABASES[{db!r}]['OPTIONS']"
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor not in SUPPORTED:
        yield Error(
            f"dbtasks cannot keep its queue in {connection.display_name} (DATABASES[{db!r}]).",
            hint="Use PostgreSQL, MySQL, MariaDB or SQLite; OPTIONS['database'] chooses the alias.",
            id="dbtasks.E006",
        )
    elif connection.settings_dict["ENGINE"].startswith("mysql.connector"):
        yield Error(
            f"dbtasks does not work with MySQL Connector/Python, the ENGINE of DATABASES[{db!r}].",
            hint="Set ENGINE to 'django.db.backends.mysql', and install 'dbtasks[mysql]'.",
            id="dbtasks.E008",
        )
    elif connection.vendor == "sqlite" and options.get("transaction_mode") != "IMMEDIATE":
        yield Warning(
            f"{where} does not contain 'transaction_mode': 'IMMEDIATE'. A transaction that reads "
            "before it writes fails with 'database is locked' when a runner writes.",
            hint=f"Set {where}['transaction_mode'] = 'IMMEDIATE'.",
            id="dbtasks.W002",
        )
    elif connection.vendor == "mysql":
        level = options.get("isolation_level", "read committed")
        if str(level).lower() != "read committed":
            yield Warning(
                f"{where}['isolation_level'] is {level!r}. Runners and enqueue() lock more than "
                "their rows and cause deadlocks.",
                hint="Use Django's default, 'read committed'.",
                id="dbtasks.W003",
            )
    yield from check_autocommit(db)
    yield from check_pool(db, default_workers())


def check_autocommit(db: str) -> Iterator[CheckMessage]:
    """Yield an error if connections to that database do not commit each statement."""
    if not connections[db].settings_dict["AUTOCOMMIT"]:
        yield Error(
            f"DATABASES[{db!r}] sets AUTOCOMMIT to False: what runners write would never be "
            "committed, so no task runs.",
            hint="Remove it; open transactions with atomic().",
            id="dbtasks.E007",
        )


def check_pool(db: str, workers: int) -> Iterator[CheckMessage]:
    """Yield a warning if that database's connection pool is too small for so many threads."""
    size = pool_size(db)
    if size is not None and size < workers + OWN_CONNECTIONS:
        yield Warning(
            f"The connection pool of DATABASES[{db!r}] holds {size} connections; a runner with "
            f"{workers} threads needs {workers + OWN_CONNECTIONS}.",
            hint=f"Set DATABASES[{db!r}]['OPTIONS']['pool']['max_size'] to at least that.",
            id="dbtasks.W004",
        )
