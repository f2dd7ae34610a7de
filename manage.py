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
    # A test database that a killed run left behind is replaced without a question.
    execute_from_command_line([*argv, "--no-input"] if testing else argv)


if __name__ == "__main__":
    main(sys.argv)
