"""One attempt of one claimed row, from its path to its outcome.

Owns calling task code, the signals around it, and what each end means for the row. Never claims a
row, and never decides when a running attempt must end.

Read in this order: interrupt, outcomes, start, unknown, live_result, announcing, failures,
attempt, running, settling.
"""
