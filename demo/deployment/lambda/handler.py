"""The Lambda function that runs tasks; DJANGO_SETTINGS_MODULE names the settings.

Importing it sets Django up, while Lambda starts the function. A function that gets other events as
well asks ``dbtasks.contrib.aws.is_ours(event)`` before it calls this.
"""

from dbtasks.contrib.aws import handler

__all__ = ["handler"]
