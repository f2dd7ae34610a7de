"""The app for INSTALLED_APPS.

Owns its label, which a project's own app is not likely to have. Never imports the rest of the app.
"""

from django.apps import AppConfig


class ServeConfig(AppConfig):
    """Adds ``manage.py serve``."""

    name = "dbtasks.contrib.serve"
    label = "dbtasks_serve"
    verbose_name = "Server with a task runner"
