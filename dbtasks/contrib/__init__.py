"""Runners inside other servers, and services beside the database.

Owns one module for each. Never imported by the rest of the package.

Read in this order: embedded, asgi, gunicorn, mule, serve, redis.
"""
