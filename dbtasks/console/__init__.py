"""What people read in a terminal while a runner runs.

Owns the words, and what a command checks first. Never changes how a runner runs.

Read in this order: terminal, logs, events, progress, narrator, report, banner, preflight, flags.
"""
