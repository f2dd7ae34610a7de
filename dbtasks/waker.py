"""A service beside the database that wakes runners in other processes.

Owns the base class of such services, and which one a backend uses. Never sends or receives anything
by itself, and imports neither models nor a client library, because settings import this.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from django.conf import settings
from django.core.checks import CheckMessage


class Waker(ABC):
    """A service that passes wake-ups on. Subclass it, and set OPTIONS["wakeup"].

    An object is made in settings, so making it must open nothing and import no client library.
    """

    # The module that it needs, and the extra of dbtasks that installs it.
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @abstractmethod
    def publish(self, backend: str) -> None:
        """Wake the runners of that backend, wherever they listen.

        Runs in the thread of the caller of enqueue(), after the commit, so it must return within
        milliseconds, a tenth of a second if the service is away. It may raise: runners poll.
        """

    @abstractmethod
    def listen(self, backend: str) -> AbstractContextManager[Callable[[float], bool]]:
        """Return a context manager that listens for that backend while it is open.

        It gives a function that waits at most that many seconds and returns whether a wake-up has
        come. Both may raise if the service is away: the runner polls, and listens again.
        """

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is wrong with this object as the waker of that backend."""
        yield from ()


def waker_of(backend: str) -> Waker | None:
    """Return the waker of that backend by TASKS; None if it has none."""
    backends: Any = settings.TASKS
    waker = backends.get(backend, {}).get("OPTIONS", {}).get("wakeup")
    return waker if isinstance(waker, Waker) else None
