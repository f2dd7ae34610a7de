"""The backend: what Django's framework asks of it, and tasks that run inline."""
