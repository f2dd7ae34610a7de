"""The measured task, for the backends of Django's tasks.

Owns nothing else. Never does more than `body.noop`.
"""

from django.tasks import task

from . import body


@task
def noop(number: int = 0) -> None:
    """Do nothing."""
    body.noop(number)
