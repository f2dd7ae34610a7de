"""Durations, cron expressions, time zones and the rules made of them."""
