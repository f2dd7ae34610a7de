"""The protocol of claims, outcomes and rescues, searched whole: no order of events breaks it."""

from typing import Any

from django.test import SimpleTestCase

from . import model
from .model import GUARDS, Model, search

# Small worlds, each large enough for what it is about; two processes in all of them.
WORLDS: dict[str, dict[str, Any]] = {
    "three attempts": {"max_attempts": 3, "releases": 1},
    "workers that join anew": {"max_attempts": 1, "names": 2, "stale": 0, "forgets": True},
    "two tasks": {"max_attempts": 1, "tasks": 2, "stale": 0},
    "people": {"max_attempts": 1, "retries": 1, "by_hand": True, "held": True},
    "one attempt": {"max_attempts": 1, "beats": 1},
}
# Where the search goes without a guard, and which promise it finds broken there.
BREAKS = {
    "claim.status": ("three attempts", model.OWNED),
    "claim.hold": ("three attempts", model.DUE),
    "claim.registered": ("workers that join anew", model.SETTLED),
    "claim.counts": ("three attempts", model.COUNTED),
    "settle.id": ("two tasks", model.FRESH),
    "settle.status": ("three attempts", model.ONCE),
    "settle.fence": ("three attempts", model.ONCE),
    "settle.failures": ("one attempt", model.BOUNDED),
    "released.phase": ("three attempts", model.COUNTED),
    "rescue.lost": ("three attempts", model.KEPT),
    "rescue.status": ("three attempts", model.ONCE),
    "rescue.fence": ("three attempts", model.ONCE),
    "rescue.counts": ("workers that join anew", model.BOUNDED),
    "declare_lost.beat": ("one attempt", model.KEPT),
    "beat.state": ("three attempts", model.TOLD),
    "leave.settled": ("three attempts", model.OPEN),
    "forget.rows": ("workers that join anew", model.OPEN),
    "reconcile": ("three attempts", model.OPEN),
    "cancel.status": ("people", model.FINAL),
    "cancel.fence": ("people", model.FRESH),
    "request.status": ("people", model.FINAL),
    "retry.status": ("people", model.OWNED),
    "purge.status": ("people", model.WHOLE),
    "older.status": ("people", model.WHOLE),
}


class ModelTests(SimpleTestCase):
    """claim, settle, released, rescue, cancel, retry, purge; crashes and lost answers anywhere"""

    def test_no_order_of_events_breaks_a_promise(self):
        """With every guard in place the search ends, and has found nothing."""
        for name, world in WORLDS.items():
            with self.subTest(name):
                found = search(Model(**world))
                print(f"{name}: {found.states} states", end=" ")

                self.assertEqual("", found.broken, " > ".join(found.trace))

    def test_every_guard_is_needed(self):
        """Without any one of them a short way leads to a broken promise."""
        for guard, why in GUARDS.items():
            with self.subTest(guard):
                world, promise = BREAKS[guard]
                found = search(Model(**WORLDS[world], without=guard))

                self.assertEqual(promise, found.broken, why)
                self.assertTrue(found.trace)

    def test_the_shortest_way_is_shown(self):
        """A stale outcome ends the next run of its row where no fence keeps it from that."""
        found = search(Model(**WORLDS["three attempts"], without="settle.fence"))

        self.assertEqual(
            (
                "claim 0 0",
                "settle released 0 0 (fence 1) (answer lost)",
                "claim 0 0",
                "settle released 0 0 (fence 1)",
            ),
            found.trace,
        )
