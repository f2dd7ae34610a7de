"""How tests wait: for a condition, not for a while."""

import time
from collections.abc import Callable
from typing import Any

# Seconds after which a test stops waiting and fails: a machine may be slow.
MAX_WAIT = 30


def until(condition: Callable[[], Any], what: str = "", timeout: float = MAX_WAIT) -> None:
    """Block until the condition holds; raise AssertionError naming `what` if it does not."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what or condition} did not come in {timeout} s.")
        time.sleep(0.01)
