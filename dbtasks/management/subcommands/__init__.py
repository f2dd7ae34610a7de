"""The subcommands of ``manage.py dbtasks``, one module each.

A subcommand has HELP, add_arguments(parser), and handle(command, options), which returns its exit
code.

Read in this order: cancel, importing, periodic, sweep.
"""
