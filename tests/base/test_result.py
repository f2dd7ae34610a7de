"""What is read out of the errors of a row."""

from django.db import IntegrityError
from django.test import SimpleTestCase

from dbtasks.base.result import class_path, error_message
from dbtasks.execution.failures import describe_error


class Sudden(Exception):
    pass


class ErrorMessageTests(SimpleTestCase):
    """The line that stands for an error in lists and logs."""

    def message(self, error: Exception, cause: Exception | None = None) -> str:
        """Return the message of the error, after it was raised."""
        try:
            raise error from cause
        except Exception as raised:
            return error_message(*describe_error(raised))

    def test_it_is_the_first_line_of_the_message(self):
        """The following ones are details, as those of a database's error."""
        detail = 'violates "one_a_day"\nDETAIL:  Key (day)=(1) already exists.\n'

        self.assertEqual('violates "one_a_day"', self.message(IntegrityError(detail)))
        self.assertEqual("first", self.message(Sudden("first\n\nsecond: third")))
        self.assertEqual("boom", self.message(ValueError("boom")))
        self.assertEqual("'x'", self.message(KeyError("x")))

    def test_causes_and_notes_are_not_the_message(self):
        """The error itself counts, and nothing that stands above or below it."""
        error = ValueError("boom\nmore")
        error.add_note("a note")

        self.assertEqual("boom", self.message(error, ValueError("a cause")))

    def test_an_error_without_a_message(self):
        """An empty text, not the name of the class or a line of code."""
        self.assertEqual("", self.message(Sudden()))
        self.assertEqual("", self.message(ValueError("")))

    def test_texts_that_are_no_traceback(self):
        """Errors of dbtasks are sentences."""
        self.assertEqual("It was lost.", error_message("dbtasks.WorkerLost", "It was lost.\nOnce."))
        self.assertEqual("", error_message(class_path(Sudden), ""))
        self.assertEqual("the end", error_message("a.B", "Traceback (most recent\n  x\nthe end"))
