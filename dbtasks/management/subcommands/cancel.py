"""``manage.py dbtasks cancel``: cancel tasks by their ids."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.tasks import TaskResultStatus, base
from django.tasks.exceptions import TaskResultDoesNotExist

from ...backend import DatabaseBackend
from ...console import flags, preflight

HELP = "Cancel tasks: waiting ones end at once, running ones are asked to stop."


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments: ids and backend."""
    parser.add_argument("ids", nargs="+", metavar="ID", help="Id of a task; may be repeated.")
    flags.add_backend(parser, "Alias in TASKS whose tasks are cancelled (default: default).")


def handle(command: BaseCommand, options: dict[str, Any]) -> int:
    """Print a line for each id; return 0 if all were cancelled or asked, else 1."""
    backend = preflight.ready_backend(options["backend"])
    results = [_cancel(backend, id) for id in options["ids"]]
    for done, line in results:
        if done and options["verbosity"]:
            command.stdout.write(line)
        elif not done:
            command.stderr.write(line)
    return 0 if all(done for done, _ in results) else 1


def _cancel(backend: DatabaseBackend, id: str) -> tuple[bool, str]:
    """Cancel the task; return whether there was something to cancel, and a message."""
    done = backend.cancel(id)
    try:
        result: base.TaskResult = backend.get_result(id)
    except TaskResultDoesNotExist:
        return False, f"There is no task {id!r} in the backend {backend.alias!r}."
    name = f"{result.task.module_path} {result.id}"
    if not done:
        return False, f"{name} has finished as {result.status}; there is nothing to cancel."
    if result.status == TaskResultStatus.RUNNING:
        return True, f"{name} is running; it was asked to stop."
    if result.status == TaskResultStatus.SUCCESSFUL:
        return False, f"{name} has finished as {result.status} before it could be stopped."
    return True, f"{name} was cancelled."
