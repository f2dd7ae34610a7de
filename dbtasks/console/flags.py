"""Command-line flags.

Owns how the options of a runner become flags of a parser. Never reads the values of flags.
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import replace
from typing import Any

from ..options.runner import RUNNER_OPTIONS, RunnerOption


def add_runner_options(parser: Any, *names: str, **instead: dict[str, Any]) -> None:
    """Add the flags of these options of a runner, or of all, to a parser or a group of it.

    `instead` replaces attributes of some options, such as `flags` that the command uses itself, or
    `help`.
    """
    for option in RUNNER_OPTIONS:
        if not names or option.name in names:
            option = replace(option, **instead.get(option.name, {}))
            parser.add_argument(*option.flags, **_arguments(option))


def _arguments(option: RunnerOption) -> dict[str, Any]:
    """Return the keyword arguments of add_argument()."""
    arguments: dict[str, Any] = {"dest": option.name, "help": option.help, **option.extra}
    if "action" not in option.extra:
        arguments["type"] = option.read
    if option.metavar is not None:
        arguments["metavar"] = option.metavar
    if option.extra.get("action") != "append":
        arguments["default"] = option.default
    return arguments


def add_backend(parser: Any, help: str) -> None:
    """Add the flag that names one backend to a parser."""
    parser.add_argument("--backend", default="default", metavar="ALIAS", help=help)


def formatter(base: Any) -> Any:
    """Return a help formatter that keeps the line breaks of the epilog."""
    return type("HelpFormatter", (base, RawDescriptionHelpFormatter), {})
