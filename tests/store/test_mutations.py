"""The tests notice when a guard is gone.

A few are tried here, all of them by ``uv run python -m tests.mutations``.
"""

from django.test import SimpleTestCase

from ..mutations import MUTATIONS, ROOT, is_noticed


class MutationTests(SimpleTestCase):
    """Guards taken out of a copy of the package."""

    def test_every_guard_is_where_the_list_says(self):
        """A guard that was reworded is reworded in the list."""
        for mutation in MUTATIONS:
            with self.subTest(mutation.name):
                text = (ROOT / "dbtasks" / mutation.file).read_text()

                self.assertNotEqual(text, mutation.applied(text))

    def test_a_missing_guard_is_noticed(self):
        """The fence of an outcome, the beat of a verdict, the state of a worker that claims."""
        for guard in (
            "THEN fence END = %s",
            "state=LIVE, beat=beat",
            "worker_id = %s AND state = 'li",
        ):
            mutation = next(each for each in MUTATIONS if guard in each.guard)
            with self.subTest(mutation.name):
                self.assertTrue(is_noticed(mutation))
