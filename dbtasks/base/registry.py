"""The functions that a row may call.

Owns the map from paths to tasks, which fills as task modules are imported. Never imports a module
that does not belong to an installed app, the project or OPTIONS["task_modules"], and never returns
anything that is not a task: a row is data, not code.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.tasks.base import Task
from django.utils.module_loading import module_has_submodule

from ..exceptions import TaskNotFound

logger = logging.getLogger("dbtasks.registry")

_tasks: dict[str, Task] = {}


def register(task: Task) -> None:
    """Register the task under its path. A copy made by using() does not replace the original."""
    path = task.module_path
    known = _tasks.get(path)
    if known is None or known.func is not task.func:
        _tasks[path] = task


def get(path: str) -> Task | None:
    """Return the task that is registered under the path, None if there is none."""
    return _tasks.get(path)


def discover() -> list[str]:
    """Import the ``tasks`` module of each installed app; return a message for each that fails."""
    failed = []
    for config in apps.get_app_configs():
        if config.module is None or not module_has_submodule(config.module, "tasks"):
            continue
        try:
            import_module(f"{config.name}.tasks")
        except (Exception, SystemExit) as error:  # the other apps' tasks still run
            logger.exception("%s.tasks cannot be imported", config.name)
            failed.append(f"{config.name}.tasks cannot be imported: {error!r}")
    return failed


def find(path: str, task_modules: Iterable[str] = ()) -> Task:
    """Return the task of that path, importing its module if that is allowed.

    Raise TaskNotFound if there is no such task. If its module cannot be imported, the cause is the
    exception of the import.
    """
    task = _tasks.get(path) or _imported(path)
    if task is None and (module := _importable(path, task_modules)):
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # the row fails, but the runner goes on
            raise TaskNotFound(f"{path!r}: importing {module!r} failed: {error!r}") from error
        task = _tasks.get(path) or _imported(path)
    if task is None:
        raise TaskNotFound(
            f"{path!r} is not a task that may be run. A task is a module-level function decorated "
            "with @task in an installed app or in the project's package. OPTIONS['task_modules'] "
            "allows other modules."
        )
    return task


def _imported(path: str) -> Task | None:
    """Return the task of that path if its module is imported already."""
    for module, names in _splits(path):
        found: Any = sys.modules.get(module)
        if found is not None:
            for name in names:
                found = getattr(found, name, None)
            return found if isinstance(found, Task) else None
    return None


def _importable(path: str, task_modules: Iterable[str]) -> str | None:
    """Return the module of that path if it may be imported."""
    module = path.rpartition(".")[0]
    roots = {config.name for config in apps.get_app_configs()} | set(task_modules) | _project()
    allowed = any(module == root or module.startswith(f"{root}.") for root in roots)
    return module if allowed else None


def _project() -> set[str]:
    """Return the packages of the project's own code: those of its settings and of its URLs."""
    paths = (settings.SETTINGS_MODULE, getattr(settings, "ROOT_URLCONF", None))
    return {path.partition(".")[0] for path in paths if path and "." in path}


def _splits(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each way to read the path as a module and names in it, the longest module first."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:cut]), parts[cut:]
