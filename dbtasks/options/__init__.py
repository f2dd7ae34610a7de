"""What a project configures: the OPTIONS of a backend, and the options of a runner.

Owns each option's name, default, bounds and help, once. Never touches the database or the app
registry, because tasks are imported, and their backend is made, before apps are ready.

Read in this order: values, backend, runner.
"""

from .backend import Options, Retention, parse, parsed, problems

__all__ = ["Options", "Retention", "parse", "parsed", "problems"]
