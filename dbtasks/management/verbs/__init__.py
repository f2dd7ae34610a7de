"""The verbs of ``manage.py dbtasks``, one module each.

A verb has HELP, add_arguments(parser), and handle(command, options), which returns its exit code.
"""
