"""Which workers are alive.

Owns worker ids, the beat of each process that runs tasks, and the decision that a worker is lost.
Never compares the clocks of two machines, and never settles a row itself.

Read in this order: identity, beat, silence, heartbeat.
"""
