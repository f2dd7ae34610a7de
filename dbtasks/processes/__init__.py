"""Runners as processes: signals, exit codes, supervision and reload.

Owns everything between a command line and a Runner. Never runs a task.

Read in this order: signals, waiting, link, run, child, supervisor, reload.
"""
