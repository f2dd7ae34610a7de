"""Runners inside other servers, services beside the database, and work where no runner lives.

Owns one module for each server or service. Never imported by the rest of the package.

Read in this order: embedded, asgi, gunicorn, mule, serve, shown, redis, http, aws, cloudtasks.
"""
