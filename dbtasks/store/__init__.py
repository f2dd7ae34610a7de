"""Every write to a row: one function for each transition.

Owns the guards: a write names the state that it starts from, and a worker's write also the fence of
its claim. Nothing else in the package changes a row. Never calls task code, sends signals or knows
threads. Times are the database's own, read in the statement.

    enqueue            → READY, held until run_after
    import_batch       a waiting row of another package → READY; that row is deleted
    promote            held → due
    claim              due → RUNNING
    claim_quarantined  quarantined → RUNNING, one row at a time
    settle             RUNNING → SUCCESSFUL, FAILED, or, unless it was cancelled, READY again
    retry              FAILED → READY
    run_now            scheduled → due
    cancel             READY → FAILED
    request_cancel     RUNNING → RUNNING, asked to end: its runner reads `cancel_requests`
    purge              finished → deleted
    delete             finished → deleted

Each one opens its own transaction, and runs again after a deadlock or a lock timeout. Inside a
caller's transaction it runs once. Only enqueue and the manual operations may be called there.

Read in this order: rows, dialects, unit, enqueueing, due, claiming, settling, operations, probing,
purging, workers, periodic, sources, importing.
"""

from .claiming import claim, claim_one, claim_quarantined
from .due import QueuePeek, peek, promote, waiting
from .enqueueing import enqueue
from .operations import cancel, cancel_requests, delete, request_cancel, retry, run_now
from .probing import Trouble, probe
from .purging import older, purge, purge_older
from .rows import Claim, NewTask, Outcome, Place, delete_after
from .settling import is_too_large, settle, standing
from .unit import SUPPORTED, now, pk_text, to_datetime

__all__ = [
    "SUPPORTED",
    "Claim",
    "NewTask",
    "Outcome",
    "Place",
    "QueuePeek",
    "Trouble",
    "cancel",
    "cancel_requests",
    "claim",
    "claim_one",
    "claim_quarantined",
    "delete",
    "delete_after",
    "enqueue",
    "is_too_large",
    "now",
    "older",
    "peek",
    "pk_text",
    "probe",
    "promote",
    "purge",
    "purge_older",
    "request_cancel",
    "retry",
    "run_now",
    "settle",
    "standing",
    "to_datetime",
    "waiting",
]
