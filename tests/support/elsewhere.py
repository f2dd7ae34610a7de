"""A task that only another process imports."""

from django.tasks import task


@task
def login(user: str, password: str, *tokens: str) -> None:
    """Take secrets by position."""
