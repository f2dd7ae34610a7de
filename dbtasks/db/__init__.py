"""Access to the database from dbtasks' own threads.

Owns time limits of calls, threads that keep a connection, and the state in which connections are
left. Never names a table.

Read in this order: timeouts, statements, full_servers, connections, isolation, service.
"""
