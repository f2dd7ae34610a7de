"""AWS: hints by SQS, and a Lambda function that runs tasks.

Owns what settings and Lambda functions import. Never imports boto3, and never Django's models
before `handler` is asked for: `SQS` is made in settings.

Read in this order: events, sqs, function.
"""

from typing import TYPE_CHECKING, Any

from .events import is_ours
from .sqs import SQS

if TYPE_CHECKING:
    from .function import handler

__all__ = ["SQS", "handler", "is_ours"]


def __getattr__(name: str) -> Any:
    """Return `handler`, and set Django up for it: that belongs to the start of a function."""
    if name != "handler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
    from .function import handler

    globals()["handler"] = handler
    return handler
