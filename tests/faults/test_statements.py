"""Every statement of a runner's life fails, in every way in which databases fail."""

import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from django.test import TransactionTestCase, tag

from ..support.injection import KINDS, Injector
from ..support.life import InlineLife, Life
from ..support.rows import vendor
from .storm import IS_FULL, SEED, size

# Seconds that the larger sample of the suite may take.
BUDGET = size(20, 10**6)


@tag("faults")
class StatementTests(TransactionTestCase):
    """One life after the other, in threads of this process, whose connections are under control."""

    def test_a_runner_s_rows_are_where_the_promises_say(self) -> None:
        """Whichever statement fails, and however: nothing is lost, doubled or stuck."""
        self.judge(Life(), KINDS, BUDGET)

    def test_rows_of_process_tasks_are_where_the_promises_say(self) -> None:
        """It may raise; what it leaves is done by the next process."""
        # Its calls are made in the thread of a caller, who may wait for as long as he likes.
        kinds = KINDS if vendor() == "sqlite" else set(KINDS) - {"hang"}
        self.judge(InlineLife(), sorted(kinds), BUDGET / 3)

    def judge(self, life: Life, kinds: Sequence[str], budget: float) -> None:
        """Let one statement after the other fail, each in a life of its own."""
        wrong: list[str] = []
        with life, Injector() as injector:
            cases = self.cases(life, injector, kinds)
            random.Random(SEED).shuffle(cases)
            end, lives, reached = time.monotonic() + budget, 0, 0
            for case in cases:
                if time.monotonic() > end:
                    break
                life.prepare()
                injector.arm(*case)
                what = life.live()
                lives, reached = lives + 1, reached + injector.struck.is_set()
                injector.heal()
                if IS_FULL and lives % 50 == 0:
                    print(f"{lives} of {len(cases)} cases", file=sys.stderr)
                if what:
                    wrong.append(f"{case}: {what}")
                    print(f"\n{wrong[-1]}", file=sys.stderr)
        print(
            f"\n{vendor()}: {type(life).__name__}: {lives} of {len(cases)} cases, {reached} "
            f"reached their statement, {len(wrong)} went wrong, seed {SEED}",
            file=sys.stderr,
        )
        self.assertEqual([], wrong)
        self.assertGreater(reached, lives / 2)

    def cases(self, life: Life, injector: Injector, kinds: Sequence[str]) -> list[Any]:
        """Return site, occurrence and kind of each case, as two lives without a fault show them."""
        found: dict[str, int] = {}
        for _ in range(2):
            life.prepare()
            injector.counts.clear()
            self.assertEqual("", life.live())
            for label, count in injector.counts.items():
                found[label] = max(found.get(label, 0), min(count, 2))
        if IS_FULL:
            print("\n".join(sorted(found)), file=sys.stderr)
        return [
            (label, n + 1, kind)
            for label, count in sorted(found.items())
            for n in range(count)
            for kind in (kinds if not label.endswith("CONNECT") else ("too_many", "cut_after"))
        ]
