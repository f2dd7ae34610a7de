"""One attempt of one claimed row, from its path to its outcome.

Owns calling task code, the signals around it, when an attempt must end, and what each end means for
the row. Never claims a row.

Read in this order: interrupt, outcomes, start, unknown, live_result, announcing, failures,
attempt, running, settling, deadlines, bounds.
"""
