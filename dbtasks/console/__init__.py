"""What commands print, and what they check first.

Owns the texts that people read in a terminal while a runner runs. Never changes how a runner runs.

Read in this order: terminal, logs, events, progress, narrator, report, banner, preflight,
command, flags.
"""
