"""``manage.py dbtasks``: subcommands that manage the queue."""

from argparse import SUPPRESS, Action
from copy import copy
from typing import Any

from django.core.management.base import CommandParser

from ...console.command import TasksCommand
from ..subcommands import cancel, importing, periodic, sweep

SUBCOMMANDS = {"cancel": cancel, "import": importing, "periodic": periodic, "sweep": sweep}


class Command(TasksCommand):
    """Run the subcommand."""

    help = "Manages the tasks of a database backend."

    def add_arguments(self, parser: CommandParser) -> None:
        parsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
        own = [action for action in parser._actions if action.option_strings]
        for name, module in SUBCOMMANDS.items():
            sub = parsers.add_parser(name, help=module.HELP, description=module.HELP)
            module.add_arguments(sub)
            _add_again(sub.add_argument_group("Django's flags"), own)

    def handle(self, **options: Any) -> None:
        if code := SUBCOMMANDS[options["subcommand"]].handle(self, options):
            raise SystemExit(code)


def _add_again(group: Any, actions: list[Action]) -> None:
    """Let these flags of the command also be written after the subcommand."""
    for action in actions:
        if "--help" not in action.option_strings:
            repeated = copy(action)
            # Without the flag here, the one before the subcommand counts.
            repeated.default = SUPPRESS
            group._add_action(repeated)
