"""When a failed task is tried again."""

from datetime import timedelta
from typing import Any

from django.tasks.exceptions import InvalidTask
from django.test import SimpleTestCase
from hypothesis import given
from hypothesis import strategies as st

from dbtasks.base import policy

from ..support import tasks


class BackoffTests(SimpleTestCase):
    """delay_after()"""

    def delay(self, backoff: Any, failures: int = 1) -> float | None:
        return policy.delay_after(backoff, failures, ValueError(), lambda: None)

    @given(st.integers(1, 2**31))
    def test_the_default_grows_to_an_hour_and_varies_by_half(self, failures):
        """Never below half of 5 s, never above one and a half hours, without overflow."""
        middle = min(5.0 * 2 ** min(failures - 1, 20), 3600.0)

        self.assertTrue(middle / 2 <= self.delay(None, failures) <= middle * 1.5)

    def test_seconds_lists_and_functions(self):
        """A number holds for all, a list for each attempt and its last for the rest."""
        self.assertEqual(7.0, self.delay(7.0, 9))
        self.assertEqual([1.0, 5.0, 5.0], [self.delay((1.0, 5.0), n) for n in (1, 2, 3)])
        self.assertEqual(3.0, self.delay(lambda error, result: 3))
        self.assertIsNone(self.delay(lambda error, result: None))
        for wrong in (-1, float("nan"), "soon", True, b"5"):
            with self.assertRaises(ValueError):
                self.delay(lambda error, result, wrong=wrong: wrong)


class CheckTests(SimpleTestCase):
    """What the decorator and using() refuse."""

    def test_wrong_values_are_refused_with_a_sentence(self):
        """Each says what is allowed."""
        for name, value, sentence in (
            ("max_attempts", 0, "is not a valid number of attempts"),
            ("max_attempts", True, "is not a valid number of attempts"),
            ("backoff", "soon", "Use seconds, a timedelta"),
            ("backoff", [], "Use seconds, a timedelta"),
            ("backoff", [1, -1], "must be 0 or more"),
            ("on_lost", "ignore", "must be 'retry' or 'fail'"),
            ("retain", "forever", "not a duration above zero"),
            ("retry_on", ValueError, "A row stores no code"),
            ("backoff", len, "A row stores no code"),
        ):
            with self.subTest(name, value=value), self.assertRaisesMessage(InvalidTask, sentence):
                tasks.add.using(**{name: value})
        with self.assertRaisesMessage(TypeError, "unknown policy 'timout'"):
            tasks.add.using(timout=3)

    def test_values_are_kept(self):
        """A copy has what was asked for, the task itself stays as it was."""
        changed = tasks.add.using(max_attempts=3, backoff=[1, 2], on_lost="fail", retain="1h")

        self.assertEqual(
            (3, (1.0, 2.0), "fail"), (changed.max_attempts, changed.backoff, changed.on_lost)
        )
        self.assertEqual(timedelta(hours=1), changed.retain)
        self.assertIsNone(tasks.add.max_attempts)
