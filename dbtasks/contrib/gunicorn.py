"""A runner inside gunicorn: ``from dbtasks.contrib.gunicorn import …`` in gunicorn.conf.py.

Owns the two hooks, which gunicorn finds by their names. Never runs in gunicorn's master process,
which only supervises the workers.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import Embedded

__all__ = ["post_worker_init", "worker_exit"]

# The grace of the runner ends this many seconds before gunicorn kills the worker.
MARGIN = 2.0
# Seconds between two checks whether the worker was asked to stop.
LOOK = 0.2

_runner: "Embedded | None" = None


def post_worker_init(worker: Any) -> None:
    """Start a runner in this worker, unless another process of the machine hosts it.

    A hook of gunicorn. Environment variables configure the runner; DBTASKS_RUNNER=off starts none.
    Its grace ends before gunicorn kills a worker that stops. Raise ImproperlyConfigured or
    CommandError if a value is not valid; gunicorn then reports the error and ends.
    """
    # Imported here, because models need Django's apps, which the worker has loaded by now.
    from .embedded import Embedded, is_wanted

    global _runner
    if not is_wanted():
        return
    seconds = worker.cfg.graceful_timeout
    # A worker that stops sends gunicorn no heartbeat, and is killed for that too; 0 means never.
    if worker.cfg.timeout:
        seconds = min(seconds, worker.cfg.timeout)
    _runner = Embedded("a gunicorn worker", most_grace=max(0.0, seconds - MARGIN))
    _runner.start()
    threading.Thread(target=_follow, args=(worker, _runner), daemon=True).start()


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the runner of this worker, if it has one, and wait for it. A hook of gunicorn."""
    if _runner is not None:
        _runner.stop()


def _follow(worker: Any, runner: "Embedded") -> None:
    """Stop the runner when the worker stops: after its last request there may be no time left."""
    while worker.alive:
        time.sleep(LOOK)
    runner.ask()
