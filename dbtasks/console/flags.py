"""Command-line flags.

Owns how the options of a runner become flags of a parser. Never reads what was given.
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import replace
from typing import Any

from ..options.runner import RUNNER_OPTIONS, RunnerOption


def add_runner_options(parser: Any, *names: str, **instead: dict[str, Any]) -> None:
    """Add the flags of these options of a runner, or of all, to a parser or a group of it.

    `instead` has other values of some of them: `flags` where a command uses the usual ones itself,
    or `help`.
    """
    for option in RUNNER_OPTIONS:
        if not names or option.name in names:
            option = replace(option, **instead.get(option.name, {}))
            parser.add_argument(*option.flags, **_arguments(option))


def _arguments(option: RunnerOption) -> dict[str, Any]:
    """Return what argparse needs beside the flags."""
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
    """Return the class with which help keeps the lines of its epilog as they are."""
    return type("HelpFormatter", (base, RawDescriptionHelpFormatter), {})
