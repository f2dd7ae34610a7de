"""The Django app.

Owns its name and the registration of the system checks. Never imports task modules: the runner
imports them when all apps are ready.
"""

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _

from . import distribution
from .base.result import run_waited_with


def _run_waited(backend: str, id: str, queue_name: str) -> None:
    from .inline import run_waited

    run_waited(backend, id, queue_name)


class DBTasksConfig(AppConfig):
    """Registers the models and the system checks."""

    name = "dbtasks"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, and what runs a row that a task waits for."""
        from . import checks

        run_waited_with(_run_waited)
        register(checks.check_backends)
        register(distribution.check_distributions)
        register(checks.check_mounts, Tags.urls)
        register(checks.check_deployment, deploy=True)
