"""Command-line flags.

Owns how the options of a runner become flags of a parser. Never reads the values of flags.
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import replace
from typing import Any

from ..options.runner import FLAGS, WAIT, Flag, command_defaults


def add_runner_options(parser: Any, *names: str, **instead: dict[str, Any]) -> None:
    """Add the flags of these options of a runner, or of all, to a parser or a group of it.

    `instead` replaces attributes of some flags, such as the `names` that the command uses itself.
    """
    defaults = command_defaults()
    for name, flag in FLAGS.items():
        if not names or name in names:
            flag = replace(flag, **instead.get(name, {}))
            parser.add_argument(*flag.names, dest=name, **_arguments(flag, defaults[name]))


def add_wait(parser: Any, **instead: Any) -> None:
    """Add the flag that says for how long the command waits for its database."""
    parser.add_argument(*WAIT.names, dest="wait", **_arguments(replace(WAIT, **instead), None))


def _arguments(flag: Flag, default: Any) -> dict[str, Any]:
    """Return the keyword arguments of add_argument()."""
    arguments: dict[str, Any] = {"help": flag.help, "default": default, **flag.extra}
    if flag.extra.get("action") in (None, "extend"):
        arguments["type"] = flag.read
    if flag.metavar is not None:
        arguments["metavar"] = flag.metavar
    return arguments


def add_backend(parser: Any, help: str) -> None:
    """Add the flag that names one backend to a parser."""
    parser.add_argument("--backend", default="default", metavar="ALIAS", help=help)


def formatter(base: Any) -> Any:
    """Return a help formatter that keeps the line breaks of the epilog."""
    return type("HelpFormatter", (base, RawDescriptionHelpFormatter), {})
