"""The tests of dbtasks: a folder for each of its packages, faults, system, and what all share."""
