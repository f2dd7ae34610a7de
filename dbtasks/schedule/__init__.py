"""Durations and schedules.

Owns how people write them, and when a schedule ticks. Never reads the database. Reads settings only
for the project's time zone, and the clock only if the caller passes no moment.

Read in this order: duration, cron, zones, rules, periodic.
"""
