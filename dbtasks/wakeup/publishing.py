"""The guard between a waker and those who enqueue.

Owns when a waker that fails is left alone. Never raises, and never waits for a listener.
"""

import logging
import time

from ..waker import Waker
from .guard import Breaker, in_words
from .hints import is_test_environment

logger = logging.getLogger("dbtasks.wakeup")

# By backend. After a change of settings another waker has a breaker of its own.
_breakers: dict[str, tuple[Waker, Breaker]] = {}


def publish(waker: Waker, backend: str) -> None:
    """Wake runners of that backend in other processes, unless the service has failed lately.

    Raises nothing. Does nothing in a test, which must not call the servers of the settings.
    """
    if is_test_environment():
        return
    known = _breakers.get(backend)
    if known is None or known[0] is not waker:
        known = _breakers[backend] = (waker, Breaker())
    breaker = known[1]
    if breaker.is_open:
        return
    began = time.monotonic()
    try:
        waker.publish(backend)
        breaker.note(is_sent=True)
    except Exception as error:  # whatever a client library raises
        breaker.note(is_sent=False, took=time.monotonic() - began)
        said = in_words(error)
        if breaker.is_open:
            logger.warning(
                "Wake-ups of %r are not sent for %.0f s: %s. Runners poll.",
                *(backend, breaker.rest, said),
            )
        else:
            logger.debug("A wake-up of %r was not sent, runners poll: %s", backend, said)
