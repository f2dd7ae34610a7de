"""The endpoints that run tasks over HTTP, and Post."""
