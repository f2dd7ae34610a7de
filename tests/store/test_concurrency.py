"""Several workers at once, each with a connection of its own."""

import random
from collections import Counter
from functools import partial
from typing import Any

from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.execution.outcomes import not_started

from ..support.rows import DB, make_task, outcome, statuses
from ..support.together import together


class ConcurrencyTests(TransactionTestCase):
    """What one worker takes, no other gets."""

    def test_no_row_is_claimed_twice_and_none_is_left(self):
        """Four workers share the rows between them."""
        made = {make_task(priority=n % 3, queue_name="ab"[n % 2]) for n in range(300)}

        def work(number: int) -> list[Any]:
            taken: list[Any] = []
            queues = None if number % 2 else ["a", "b"]
            for _ in range(1000):
                claims = store.claim(DB, "default", f"w{number}", 7, queues)
                taken += [claim.id for claim in claims]
                if not claims and not store.peek(DB, "default").due:
                    break
            return taken

        taken = Counter(id for ids in together(4, work) for id in ids)

        self.assertEqual({1}, set(taken.values()))
        self.assertEqual(len(made), len(taken))

    def test_a_mix_of_everything_ends_well(self):
        """Claims, outcomes, releases, enqueues and cancels at once: each row ends, once."""
        seed = random.randrange(10**6)
        print(f"seed {seed}", end=" ")
        for _ in range(100):
            make_task()
        # On MariaDB the claim of another worker may lock such a row for a moment.
        settle = partial(store.settle, DB, wait=True)

        def work(number: int) -> list[Any]:
            chance, written = random.Random(seed + number), []
            for _ in range(1000):
                claims = store.claim(DB, "default", f"w{number}", 5)
                back = [claim for claim in claims if chance.random() < 0.2]
                settle([not_started(DB, claim) for claim in back])
                ended = [outcome(claim) for claim in claims if claim not in back]
                written += settle(ended)
                # What was requeued is not this worker's any more.
                if settle([outcome(claim) for claim in back]):
                    raise AssertionError("a stale outcome was written")
                if chance.random() < 0.1:
                    make_task()
                if not claims:
                    break
            return written

        written = Counter(id for ids in together(4, work) for id in ids)
        while claims := store.claim(DB, "default", "last", 50):
            written.update(settle([outcome(claim) for claim in claims]))

        self.assertEqual({1}, set(written.values()))
        self.assertEqual({"SUCCESSFUL": len(written)}, statuses())
