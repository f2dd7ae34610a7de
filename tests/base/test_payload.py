"""What a row can hold."""

import json
from enum import IntEnum
from typing import Any

from django.db import models
from django.test import SimpleTestCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbtasks.base import payload

LIMIT = 100_000

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(scalars, inner),
    max_leaves=20,
)


class Colour(models.TextChoices):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class DumpTests(SimpleTestCase):
    """dump()"""

    @given(values)
    @settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
    def test_what_is_accepted_comes_back_equal(self, value):
        """Either a TypeError, or the very value after a round trip."""
        try:
            normal, text = payload.dump(value, "args", LIMIT)
        except TypeError:
            return

        self.assertEqual(normal, payload.load(text))
        self.assertTrue(text.isascii())
        self.assertNotIn("\\u0000", text.replace("\\\\", ""))

    def test_subclasses_become_plain_values(self):
        """Enums and lazy strings are stored as what they are."""
        normal, text = payload.dump([Colour.RED, Number.ONE, (1,), b"x"], "args", LIMIT)

        self.assertEqual('["red",1,[1],"x"]', text)
        self.assertEqual([str, int], [type(item) for item in normal[:2]])

    def test_the_sentence_names_the_place(self):
        """One reads where in the arguments the trouble is."""
        with self.assertRaisesMessage(TypeError, "in kwargs['a'][1]"):
            payload.dump({"a": [1, object()]}, "kwargs", LIMIT)

    def test_depth_is_bounded(self):
        """64 levels are enough, and 65 are refused."""
        deep: Any = 0
        for _ in range(payload.MAX_DEPTH):
            deep = [deep]
        payload.dump(deep, "args", LIMIT)

        with self.assertRaisesMessage(TypeError, "nested more than 64 levels"):
            payload.dump([deep], "args", LIMIT)

    def test_size_is_bounded(self):
        """The limit counts bytes of JSON."""
        payload.dump("x" * 98, "args", 100)

        with self.assertRaisesMessage(TypeError, "101 bytes of JSON are more than the 100"):
            payload.dump("x" * 99, "args", 100)


class CleanTests(SimpleTestCase):
    """clean()"""

    @given(st.text(st.characters(exclude_categories=())), st.integers(2, 50))
    def test_every_database_can_store_it(self, text, limit):
        """No NUL, valid UTF-8, bounded."""
        cleaned = payload.clean(text, limit)

        self.assertNotIn("\0", cleaned)
        self.assertEqual(cleaned, json.loads(json.dumps(cleaned.encode().decode())))
        self.assertLess(len(cleaned), limit + 60)
