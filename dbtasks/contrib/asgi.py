"""A runner inside ASGI servers: uvicorn, hypercorn, Granian and others with lifespan events.

Owns the answers to these events, which Django's own handler refuses. Never touches a request: every
other scope is passed to the application unchanged.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

if TYPE_CHECKING:
    from .embedded import Embedded

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]


def with_runner(application: Application, **defaults: Any) -> Application:
    """Return the ASGI application with a runner beside it, from the server's start to its stop.

    Exactly one process per machine hosts the runner; if it exits, another takes over. `defaults`
    are arguments of Runner, such as ``workers=2``; environment variables win over them, and
    DBTASKS_RUNNER=off starts no runner. If the arguments are not valid, the server's start fails
    with a message.
    """

    async def application_with_runner(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send, defaults)
        else:
            await application(scope, receive, send)

    return application_with_runner


async def _live(receive: Receive, send: Send, defaults: dict[str, Any]) -> None:
    """Answer the server's lifespan events until it stops."""
    runner: Embedded | None = None
    try:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    runner = await asyncio.to_thread(_start, defaults)
                except (CommandError, ImproperlyConfigured) as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if runner is not None:
                    await asyncio.to_thread(runner.stop)
                await send({"type": "lifespan.shutdown.complete"})
                return
    finally:
        # The server has left without a shutdown, or in the middle of one: do not wait any longer.
        if runner is not None:
            runner.ask(hurry=True)


def _start(defaults: dict[str, Any]) -> "Embedded | None":
    # Imported here, because models need Django's apps, which the application has loaded by now.
    from .embedded import Embedded, is_wanted

    if not is_wanted():
        return None
    runner = Embedded("an ASGI server", **defaults)
    runner.start()
    return runner
