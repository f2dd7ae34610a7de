"""Storms of faults: real processes and servers, and a ledger that the tasks write as witness."""
