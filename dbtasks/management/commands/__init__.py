"""The commands: taskrunner, purgetasks, and dbtasks with its subcommands.

Read in this order: taskrunner, purgetasks, dbtasks.
"""
