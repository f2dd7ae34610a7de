"""Whether and how dbtasks is installed: its version, and its app.

Owns the reading of the package's metadata, and the messages about a missing app and a second
distribution. Never reads the metadata before somebody asks.
"""

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured


def version() -> str:
    """Return the installed version; "(source)" if the package runs from a source tree."""
    # Imported here, because it takes longer than all of dbtasks.
    from importlib import metadata

    try:
        return metadata.version("dbtasks")
    except metadata.PackageNotFoundError:
        return "(source)"


def problems(alias: str) -> list[CheckMessage]:
    """Return an error, which names the backend, if dbtasks is not in INSTALLED_APPS."""
    if "dbtasks" in apps.app_configs:
        return []
    return [
        Error(
            f"TASKS[{alias!r}] uses dbtasks, which is not in INSTALLED_APPS.",
            hint="Add 'dbtasks' to INSTALLED_APPS and run 'manage.py migrate'.",
            id="dbtasks.E001",
        )
    ]


def check_app(alias: str) -> None:
    """Raise ImproperlyConfigured with that error."""
    # While apps load nobody knows; the check says it then.
    for problem in problems(alias) if apps.ready else ():
        raise ImproperlyConfigured(problem.msg)


def check_distributions(**kwargs: Any) -> list[CheckMessage]:
    """Return an error if django-dbtasks, another package with the same modules, is installed."""
    from importlib import metadata

    try:
        metadata.distribution("django-dbtasks")
    except metadata.PackageNotFoundError:
        return []
    return [
        Error(
            "The distribution django-dbtasks is installed beside dbtasks. Both consist of a "
            "package 'dbtasks', so their files and migrations are mixed up.",
            hint="Run 'pip uninstall django-dbtasks', which also deletes files of dbtasks, and "
            "then 'pip install --force-reinstall --no-deps dbtasks'.",
            id="dbtasks.E020",
        )
    ]
