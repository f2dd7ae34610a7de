"""When things happen.

Owns durations and schedules as people write them. Never reads the database; reads settings only for
the project's time zone, and the clock only where no moment is given.

Read in this order: duration, cron, zones, rules, periodic.
"""
