"""Workers and claims, made without a runner."""

from typing import Any

from dbtasks import store
from dbtasks.store import workers

from .rows import DB


def register(name: str, **values: Any) -> str:
    """Register a worker of that name."""
    workers.register(DB, name, "default", **({"host_key": "", "pid": 1, "pid_started": 1} | values))
    return name


def claim(worker: str, alone: bool = False) -> store.Claim:
    """Claim one row for the worker, perhaps one that must start alone."""
    if alone:
        quarantined = store.claim_quarantined(DB, "default", worker, registered=True)
        assert quarantined is not None
        return quarantined
    [found] = store.claim(DB, "default", worker, 1, registered=True)
    return found
