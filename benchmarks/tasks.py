"""The task that is measured: nothing."""

from django.tasks import task


@task
def noop() -> None:
    """Do nothing."""
