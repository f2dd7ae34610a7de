"""The Django app. Owns its name and label. Never does work when apps load, but for checks."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DBTasksConfig(AppConfig):
    """Registers the models and the system checks."""

    name = "dbtasks"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"
