"""Runners inside other servers.

Owns one module for each server. Never imported by the rest of the package.

Read in this order: embedded, asgi, gunicorn, mule, serve.
"""
