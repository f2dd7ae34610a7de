"""Endpoints that run tasks, for hosts where no runner lives, and hints to any service by HTTP.

Owns what a project imports from here. All of it can be imported by settings. Never opens anything
to a request without a credential.

Read in this order: body, auth, gate, config, journal, work, views, mount, origin, post.
"""

from .auth import AppEngineCron, Auth, Bearer, Signed, StandardWebhook, Unavailable, refused
from .mount import endpoints, target
from .post import Post

__all__ = [
    "AppEngineCron",
    "Auth",
    "Bearer",
    "Post",
    "Signed",
    "StandardWebhook",
    "Unavailable",
    "endpoints",
    "refused",
    "target",
]
