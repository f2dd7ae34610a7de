"""An Azure function that runs what is due, each minute."""

import os

import azure.functions as func
import django
from django.db import close_old_connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

import dbtasks  # noqa: E402

app = func.FunctionApp()


@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")
def sweep(timer: func.TimerRequest) -> None:
    """Run what is due, for up to four minutes and the task that runs then."""
    close_old_connections()
    try:
        dbtasks.sweep(max_seconds=240)
    finally:
        close_old_connections()
