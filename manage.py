#!/usr/bin/env python
"""The commands of the demo project, and the test runner."""

import os
import sys

from django.core.management import execute_from_command_line


def main(argv: list[str]) -> None:
    """Run the command in `argv` with the settings that belong to it."""
    testing = argv[1:2] == ["test"]
    settings = "tests.settings" if testing else "demo.settings"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", settings)
    execute_from_command_line([*argv, *test_flags(argv)] if testing else argv)


def test_flags(argv: list[str]) -> list[str]:
    """Return the flags of a test run that `argv` leaves open."""
    # A test database that a killed run left behind is replaced without a question.
    flags = ["--no-input"]
    if not any(word.startswith(("--parallel", "--pdb", "--debug-sql")) for word in argv):
        # Not more than there are processors: many tests start processes of their own.
        flags += ["--parallel", "auto"]
    return flags


if __name__ == "__main__":
    main(sys.argv)
