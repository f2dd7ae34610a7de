"""The functions that a row may call.

Owns the map from paths to tasks, which fills as task modules are imported, and which modules
runners import. Never imports a module that does not belong to an installed app, the project or
OPTIONS["task_modules"], and never returns anything that is not a task: a row is data, not code.
"""

import logging
import site
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed
from django.tasks.base import Task
from django.tasks.exceptions import InvalidTask

from ..exceptions import TaskNotFound

logger = logging.getLogger("dbtasks.registry")

# What a path must be, in the words of every error about one that is not.
WHERE_TASKS_ARE = (
    "A task is a module-level function decorated with @task in an installed app, in the project's "
    "package, or in a module beside that. OPTIONS['task_modules'] allows other modules."
)

_tasks: dict[str, Task] = {}
# Paths of tasks that every runner knows: those registered while Django or a runner started.
_from_start: set[str] = set()
# Paths that has_home() has found to have one, with the modules that OPTIONS allow.
_with_home: set[tuple[str, tuple[str, ...]]] = set()
_is_discovering = False
# Seconds between two imports of a module that fails. Rows of its tasks are tried again and again,
# and an import may take long.
REIMPORT_INTERVAL = 5.0
# When the import of a module failed, on the monotonic clock, and how.
_failed: dict[str, tuple[float, BaseException]] = {}


def register(task: Task) -> None:
    """Register the task under its path. A copy made by using() does not replace the original."""
    path = task.module_path
    known = _tasks.get(path)
    if known is None or known.func is not task.func:
        _tasks[path] = task
        if _is_discovering or not apps.ready:
            _from_start.add(path)


def get(path: str) -> Task | None:
    """Return the task that is registered under the path, None if there is none."""
    return _tasks.get(path)


def registered() -> list[Task]:
    """Return the tasks that this process has imported."""
    return list(_tasks.values())


def discover(task_modules: Iterable[str] = ()) -> list[str]:
    """Import what a runner imports when it starts; return a message for each module that fails.

    These are the ``tasks`` modules of installed apps and of the project's package, and
    `task_modules`.
    """
    global _is_discovering
    failed = []
    for name in _start_modules(task_modules):
        _is_discovering = True
        try:
            import_module(name)
        except (Exception, SystemExit) as error:  # the other modules' tasks still run
            logger.exception("%s cannot be imported", name)
            failed.append(f"{name} cannot be imported: {error!r}")
        finally:
            _is_discovering = False
    return failed


def _start_modules(task_modules: Iterable[str]) -> list[str]:
    """Return the modules that a runner imports when it starts, in order, each once."""
    parents = [config.name for config in apps.get_app_configs() if config.module is not None]
    parents += sorted(_project())
    return list(dict.fromkeys([*(f"{p}.tasks" for p in parents if _has_tasks(p)), *task_modules]))


def _has_tasks(package: str) -> bool:
    """Return whether the package has a module ``tasks``."""
    with suppress(Exception):  # whatever the package raises: only that of the URLs is imported here
        return find_spec(f"{package}.tasks") is not None
    return False


def is_known_to_runners(path: str, task_modules: Iterable[str] = ()) -> bool:
    """Return whether a runner has the task of that path when it has started.

    discover() must have been called. A module may have been imported before that, by the project's
    URLs for example, so it also counts if a module that runners import refers to it.
    """
    if path in _from_start:
        return True
    known = set(_start_modules(task_modules))
    known |= {name for config in apps.get_app_configs() for name in _modules_of(config)}
    left = list(known)
    while left:
        module = sys.modules.get(left.pop())
        for name in _referred(module) - known if module else ():
            known.add(name)
            left.append(name)
    return path.rpartition(".")[0] in known


def _modules_of(config: Any) -> set[str]:
    return {type(config).__module__, f"{config.name}.models"}


def _referred(module: ModuleType) -> set[str]:
    """Return the names of the project's modules to which the names of a module refer."""
    found = set()
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            found.add(value.__name__)
        elif isinstance(value, Task):
            found.add(value.func.__module__)
        elif isinstance(name := getattr(value, "__module__", None), str):
            found.add(name)
    return {name for name in found if _may_import(name, ())}


def find(path: str, task_modules: Iterable[str] = ()) -> Task:
    """Return the task of that path, importing its module if that is allowed.

    Raise TaskNotFound if there is no such task. If its module cannot be imported, the cause is the
    exception of the import.
    """
    task = _tasks.get(path) or _imported(path)
    if task is None and (module := _importable(path, task_modules)):
        try:
            _import(module)
        except (Exception, SystemExit) as error:  # the runner goes on
            raise TaskNotFound(f"{path!r}: importing {module!r} failed: {error!r}") from error
        task = _tasks.get(path) or _imported(path)
    if task is None:
        raise TaskNotFound(f"{path!r} is not a task that may be run. {WHERE_TASKS_ARE}")
    return task


def check_home(path: str, task_modules: tuple[str, ...] = ()) -> None:
    """Raise InvalidTask if no runner could import the task's module."""
    if not has_home(path, task_modules):
        raise InvalidTask(f"{path!r} is a task that no runner will run. {WHERE_TASKS_ARE}")


def has_home(path: str, task_modules: tuple[str, ...] = ()) -> bool:
    """Return whether runners may import the task's module, or have it from their start on."""
    key = (path, task_modules)
    if key not in _with_home:
        if path not in _from_start and _importable(path, task_modules) is None:
            return False
        _with_home.add(key)
    return True


def _forget_homes(*, setting: str, **_: Any) -> None:
    if setting in {"INSTALLED_APPS", "ROOT_URLCONF", "TASKS"}:
        _with_home.clear()


setting_changed.connect(_forget_homes)


def _import(module: str) -> None:
    """Import the module; raise its last exception again if that was raised just now."""
    failed = _failed.get(module)
    if failed is not None and time.monotonic() < failed[0] + REIMPORT_INTERVAL:
        raise failed[1]
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        # Its frames refer to all that the import had in hand.
        _failed[module] = time.monotonic(), error.with_traceback(None)
        raise
    _failed.pop(module, None)


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
    return module if _may_import(module, task_modules) else None


def _may_import(module: str, task_modules: Iterable[str]) -> bool:
    roots = {config.name for config in apps.get_app_configs()} | set(task_modules) | _project()
    is_allowed = any(module == root or module.startswith(f"{root}.") for root in roots)
    return is_allowed or _is_beside_project(module.partition(".")[0])


def _project() -> set[str]:
    """Return the packages of the project's own code: those of its settings and of its URLs."""
    return {path.partition(".")[0] for path in _project_paths() if "." in path}


def _project_paths() -> list[str]:
    paths = (settings.SETTINGS_MODULE, getattr(settings, "ROOT_URLCONF", None))
    return [path for path in paths if isinstance(path, str)]


def _is_beside_project(name: str) -> bool:
    """Return whether the top-level module lies in the folder of the project's package, or below.

    Modules that were installed do not, even if the folder holds a virtual environment.
    """
    place = _place(name)
    if place is None or any(place.is_relative_to(folder) for folder in _installed()):
        return False
    own = (_place(path.partition(".")[0]) for path in _project_paths())
    return any(project is not None and place.is_relative_to(project.parent) for project in own)


def _place(name: str) -> Path | None:
    """Return the file or the folder of a top-level module, without importing it."""
    with suppress(ImportError, ValueError):
        spec = find_spec(name) if name else None
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))).resolve()
        if spec is not None and spec.has_location and spec.origin:
            return Path(spec.origin).resolve()
    return None


def _installed() -> set[Path]:
    """Return the folders of the standard library and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {*map(sysconfig.get_path, names), *site.getsitepackages()}
    folders.add(site.getusersitepackages())
    return {Path(folder).resolve() for folder in folders}


def _splits(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each way to read the path as a module and names in it, the longest module first."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:cut]), parts[cut:]
