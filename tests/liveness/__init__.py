"""Heartbeats, and how a worker is found to be lost."""
