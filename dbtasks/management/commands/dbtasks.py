"""``manage.py dbtasks``: look after the queue by hand, one verb at a time."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ..verbs import cancel, periodic

VERBS = {"cancel": cancel, "periodic": periodic}


class Command(BaseCommand):
    """Hand over to the verb."""

    help = "Looks after the tasks of a database backend."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        for name, verb in VERBS.items():
            own = verbs.add_parser(name, help=verb.HELP, description=verb.HELP)
            verb.add_arguments(own)

    def handle(self, **options: Any) -> None:
        if code := VERBS[options["verb"]].handle(self, options):
            raise SystemExit(code)
