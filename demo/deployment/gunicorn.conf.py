"""Gunicorn with a runner in one of its workers."""

from dbtasks.contrib.gunicorn import post_worker_init, worker_exit

__all__ = ["post_worker_init", "worker_exit"]

wsgi_app = "mysite.wsgi:application"
bind = "127.0.0.1:8000"
workers = 2
threads = 4

# Seconds until a worker is killed. The runner's grace, DBTASKS_GRACE, of 30 ends before both.
graceful_timeout = 45
timeout = 60
