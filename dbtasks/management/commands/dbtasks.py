"""``manage.py dbtasks``: subcommands that manage the queue."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ..subcommands import cancel, periodic

SUBCOMMANDS = {"cancel": cancel, "periodic": periodic}


class Command(BaseCommand):
    """Run the subcommand."""

    help = "Manages the tasks of a database backend."

    def add_arguments(self, parser: CommandParser) -> None:
        parsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
        for name, module in SUBCOMMANDS.items():
            module.add_arguments(
                parsers.add_parser(name, help=module.HELP, description=module.HELP)
            )

    def handle(self, **options: Any) -> None:
        if code := SUBCOMMANDS[options["subcommand"]].handle(self, options):
            raise SystemExit(code)
