"""Who is alive.

Owns the names of processes, the beat of whoever runs tasks, and a runner's judgement of others by
theirs. Never compares the clocks of two machines, and never settles a row itself.

Read in this order: identity, beat, heartbeat.
"""
