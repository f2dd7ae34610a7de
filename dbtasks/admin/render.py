"""Values as the admin shows them.

Owns the names of the states, times in words, and JSON as HTML. Never reads the database.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext, pgettext_lazy

from ..base import payload
from ..base.result import FAILED, READY, RUNNING, SUCCESSFUL, class_path, error_message
from ..exceptions import TaskCancelled
from ..models import ScheduledTask

NOTHING = "–"
# Characters of the arguments in the list, of an error line, and of one text in the details.
MAX_PREVIEW, MAX_LINE, MAX_TEXT = 60, 120, 20_000
STATES = {
    "due": pgettext_lazy("Task", "Due"),
    "scheduled": pgettext_lazy("Task", "Scheduled"),
    "quarantined": pgettext_lazy("Task", "Quarantined"),
    "running": pgettext_lazy("Task", "Running"),
    "stopping": pgettext_lazy("Task", "Stopping"),
    "successful": pgettext_lazy("Task", "Successful"),
    "failed": pgettext_lazy("Task", "Failed"),
    "cancelled": pgettext_lazy("Task", "Cancelled"),
}
# Listed with the running and the failed rows, because no index tells them apart.
_PARTS = {"stopping", "cancelled"}
_FINAL = {RUNNING: "running", SUCCESSFUL: "successful", FAILED: "failed"}


def state_of(row: ScheduledTask) -> str:
    """Return the state of the row, as a key of STATES."""
    if row.status == READY:
        return row.hold or "due"
    if row.status == FAILED and row.errors and is_cancel(row.errors[-1]):
        return "cancelled"
    if row.status == RUNNING and row.cancel_requested:
        return "stopping"
    return _FINAL[row.status]


def is_cancel(error: tuple[str, str]) -> bool:
    """Return whether the error is that of a cancelled task."""
    return error[0] == class_path(TaskCancelled)


def error_line(path: str, text: str) -> str:
    """Return the exception's class, without module, and the first line of its message."""
    name, message = path.rpartition(".")[2], error_message(path, text)
    return Truncator(f"{name}: {message}" if message else name).chars(MAX_LINE)


def humanize(length: timedelta) -> str:
    """Return the time span in its largest units: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min, 9 d 1 h."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 1:
        return gettext("%d ms") % (seconds * 1000)
    if seconds < 60:
        return gettext("%.1f s") % seconds
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return gettext("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": rest}
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return gettext("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes}
    return gettext("%(days)d d %(hours)d h") % {"days": hours // 24, "hours": hours % 24}


def ago(at: datetime) -> str:
    """Return in words how far the moment is from now."""
    # With USE_TZ=False, ticks of schedules are aware and all other times are naive.
    now = datetime.now(UTC)
    distance = now - at if timezone.is_aware(at) else timezone.make_naive(now) - at
    if distance < timedelta():
        return gettext("in %s") % humanize(-distance)
    return gettext("%s ago") % humanize(distance)


def moment(at: datetime, relative: bool = False) -> str:
    """Return the time as HTML; if `relative`, as the distance from now with the time as title."""
    whole = date_format(_local(at), "Y-m-d H:i:s")
    shown = ago(at) if relative else whole
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), whole, shown)


def _local(at: datetime) -> datetime:
    return timezone.localtime(at) if timezone.is_aware(at) else at


def as_json(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON that people can read."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def as_pretty_json(value: Any) -> str:
    """Return the value as HTML, indented and of bounded length."""
    text = payload.clean(as_json(value, indent=2), MAX_TEXT)
    return format_html('<pre class="dbtasks-json">{}</pre>', text)
