"""Servers that run tasks beside the site: serve, ASGI, gunicorn, uWSGI."""
