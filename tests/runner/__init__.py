"""The runner: its loop, its schedules, its events, and what it does when the database is away."""
