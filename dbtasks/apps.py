"""The Django app.

Owns its name and the registration of the system checks. Never imports task modules: the runner
imports them when all apps are ready.
"""

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class DBTasksConfig(AppConfig):
    """Registers the models and the system checks."""

    name = "dbtasks"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks."""
        from . import checks

        register(checks.check_backends)
