"""The app's place in INSTALLED_APPS.

Owns the label, which no app of a project is likely to have. Never imports anything of the app.
"""

from django.apps import AppConfig


class ServeConfig(AppConfig):
    """Brings ``manage.py serve``."""

    name = "dbtasks.contrib.serve"
    label = "dbtasks_serve"
    verbose_name = "Server with a task runner"
