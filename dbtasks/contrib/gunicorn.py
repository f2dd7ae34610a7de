"""A runner inside of gunicorn: ``from dbtasks.contrib.gunicorn import …`` in gunicorn.conf.py.

Owns the two hooks, which gunicorn finds by their names. Never runs in gunicorn's first process,
which only watches the others.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import Embedded

__all__ = ["post_worker_init", "worker_exit"]

# Seconds before gunicorn kills a worker by which the runner in it has ended.
MARGIN = 2.0
# Seconds between two looks whether the worker was told to stop.
LOOK = 0.2

_runner: "Embedded | None" = None


def post_worker_init(worker: Any) -> None:
    """Start a runner in this worker, unless another of this machine has it. Gunicorn's hook.

    Its grace ends before gunicorn kills a worker that stops. Raise ImproperlyConfigured or
    CommandError if no such runner can be: gunicorn then says so and ends.
    """
    # Imported late: models need Django's apps, which the worker has loaded by now.
    from .embedded import Embedded, is_wanted

    global _runner
    if not is_wanted():
        return
    seconds = worker.cfg.graceful_timeout
    # A worker that has left its loop is silent, and killed for that as well; 0 is for ever.
    if worker.cfg.timeout:
        seconds = min(seconds, worker.cfg.timeout)
    _runner = Embedded("a gunicorn worker", most_grace=max(0.0, seconds - MARGIN))
    _runner.start()
    threading.Thread(target=_follow, args=(worker, _runner), daemon=True).start()


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the runner of this worker, if it has one. Gunicorn's hook."""
    if _runner is not None:
        _runner.stop()


def _follow(worker: Any, runner: "Embedded") -> None:
    """Stop the runner with the worker: not after its last request, when there may be no time."""
    while worker.alive:
        time.sleep(LOOK)
    runner.ask()
