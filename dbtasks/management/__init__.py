"""The commands that dbtasks adds to ``manage.py``.

Owns the commands and their subcommands. Never does the work itself.

Read in this order: subcommands, commands.
"""
