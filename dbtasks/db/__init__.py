"""Talking to the database from threads of our own.

Owns time limits of calls, threads that keep a connection, and how connections are left behind.
Never knows a table.

Read in this order: timeouts, connections, service.
"""
