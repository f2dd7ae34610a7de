"""Google Cloud Tasks: hints to a Django that has no runner, and the tokens that Google signs.

Owns what only Google has. Never imports google-auth before the first hint or token, because
settings import this.

Read in this order: environment, certificates, google, push, oidc.
"""

from .oidc import OIDC
from .push import CloudTasks

__all__ = ["OIDC", "CloudTasks"]
