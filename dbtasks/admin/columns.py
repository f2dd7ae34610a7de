"""What the admin shows of a row, in the list and on the row's page.

Owns a method for each column and field. Never changes a row, and never shows a value that the mask
hides.
"""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..base import payload
from ..base.result import FAILED, RUNNING, SUCCESSFUL
from ..base.secrets import without_note
from ..exceptions import TaskCancelled
from ..models import ScheduledTask
from .mask import Mask
from .render import (
    MAX_PREVIEW,
    MAX_TEXT,
    NOTHING,
    STATES,
    ago,
    as_json,
    as_pretty_json,
    error_line,
    humanize,
    is_cancel,
    moment,
    state_of,
)


class TaskColumns:
    """The columns of the list, and the fields of a row's page."""

    # In the list

    @admin.display(description=_("state"))
    def state(self, row: ScheduledTask) -> str:
        """Show the state in words; the colour only repeats it."""
        key = state_of(row)
        return format_html('<span class="dbtasks-state {}">{}</span>', key, STATES[key])

    @admin.display(description=_("task"))
    def task(self, row: ScheduledTask) -> str:
        """Show the last three parts of the path, and the whole path in the title."""
        parts = row.task_path.split(".")
        short = f"…{'.'.join(parts[-3:])}" if len(parts) > 3 else row.task_path
        return format_html('<span title="{}">{}</span>', row.task_path, short)

    @admin.display(description=_("arguments"))
    def call(self, row: ScheduledTask) -> str:
        """Show the beginning of the arguments."""
        mask = Mask(row)
        args = [as_json(item) for item in mask.args()]
        kwargs = [f"{k}={as_json(v)}" for k, v in mask.kwargs().items()]
        text = Truncator(", ".join([*args, *kwargs])).chars(MAX_PREVIEW)
        return format_html("<code>{}</code>", text) if text else ""

    @admin.display(description=_("wait"))
    def wait(self, row: ScheduledTask) -> str:
        """Show how long the row was due before it first started, or has been so far."""
        due = max(row.enqueued_at, row.run_after or row.enqueued_at)
        start = row.started_at or (timezone.now() if state_of(row) == "due" else None)
        # A retry moves run_after beyond the first start.
        return humanize(start - due) if start and start >= due else NOTHING

    @admin.display(description=_("duration"))
    def duration(self, row: ScheduledTask) -> str:
        """Show how long the last start took, or has taken so far."""
        state = state_of(row)
        end = timezone.now() if row.status == RUNNING else row.finished_at
        if row.last_attempted_at is None or end is None or state == "cancelled":
            return NOTHING
        return humanize(end - row.last_attempted_at)

    @admin.display(description=_("when"))
    def when(self, row: ScheduledTask) -> str:
        """Show when the row ended, was started, will start or was enqueued, relative to now."""
        at = row.finished_at or (row.last_attempted_at if row.status == RUNNING else row.run_after)
        return moment(at or row.enqueued_at, relative=True)

    @admin.display(description=_("worker"))
    def worker(self, row: ScheduledTask) -> str:
        """Show the worker that runs the row, or ran it last."""
        return row.worker_id or (row.worker_ids[-1] if row.worker_ids else NOTHING)

    @admin.display(description=_("error"))
    def error(self, row: ScheduledTask) -> str:
        """Show the last error of a failed row in one line."""
        if row.status != FAILED or not row.errors:
            return ""
        path, text = row.errors[-1]
        line = error_line(path, Mask(row).text(text))
        return format_html('<span class="dbtasks-error">{}</span>', line)

    # On the page of one row

    @admin.display(description=_("arguments"))
    def arguments(self, row: ScheduledTask) -> str:
        """Show the positional arguments."""
        return as_pretty_json(Mask(row).args())

    @admin.display(description=_("keyword arguments"))
    def keyword_arguments(self, row: ScheduledTask) -> str:
        """Show the keyword arguments."""
        return as_pretty_json(Mask(row).kwargs())

    @admin.display(description=_("return value"))
    def result(self, row: ScheduledTask) -> str:
        """Show what the task returned."""
        if row.status != SUCCESSFUL:
            return NOTHING
        return as_pretty_json(Mask(row).value(row.return_value))

    @admin.display(description=_("meta"))
    def extra(self, row: ScheduledTask) -> str:
        """Show the meta of the task, which is stored with the row."""
        meta = without_note(row.meta)
        return NOTHING if meta is None else as_pretty_json(Mask(row).value(meta))

    @admin.display(description=_("attempts"))
    def attempts(self, row: ScheduledTask) -> str:
        """Show each start with its worker and its error."""
        starts = list(_starts(row))
        if not starts:
            return NOTHING
        mask, last = Mask(row), len(starts) - 1
        body = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            (
                (number or NOTHING, worker or NOTHING, self._traceback(mask, error, n == last))
                for n, (number, worker, error) in enumerate(starts)
            ),
        )
        return format_html(
            '<table class="dbtasks-table"><thead><tr><th scope="col">{}</th>'
            '<th scope="col">{}</th><th scope="col">{}</th></tr></thead>'
            "<tbody>{}</tbody></table>",
            *(capfirst(gettext(title)) for title in ("attempt", "worker", "error")),
            body,
        )

    def _traceback(self, mask: Mask, error: tuple[str, str] | None, is_open: bool) -> str:
        if error is None:
            return NOTHING
        # The exception's class is only shown as text, because resolving it would import code.
        path, text = error[0], mask.text(error[1])
        return format_html(
            "<details{}><summary>{}</summary><div>{}</div><pre>{}</pre></details>",
            " open" if is_open else "",
            error_line(path, text),
            path,
            payload.clean(text, MAX_TEXT),
        )

    @admin.display(description=_("timeline"))
    def timeline(self, row: ScheduledTask) -> str:
        """Show the row's times in order."""
        names = (
            "enqueued_at",
            "run_after",
            "started_at",
            "last_attempted_at",
            "finished_at",
            "delete_after",
        )
        moments = [(capfirst(_label(name)), at) for name in names if (at := getattr(row, name))]
        rows = format_html_join(
            "",
            '<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>',
            ((label, moment(at), ago(at)) for label, at in moments),
        )
        return format_html('<table class="dbtasks-table"><tbody>{}</tbody></table>', rows)


def _starts(row: ScheduledTask) -> Iterator[tuple[int | None, str | None, Any]]:
    """Yield number, worker and error of each start, and errors without a start; None if missing.

    A row keeps its last errors only, so they are matched with the starts from the end. A running or
    successful start has no error, and the cancel of a waiting row has no start.
    """
    errors = row.errors[:] if isinstance(row.errors, list) else []
    waited = bool(errors) and is_cancel(errors[-1]) and errors[-1][1] == str(TaskCancelled())
    after = [errors.pop()] if waited else []
    workers = row.worker_ids[:] if isinstance(row.worker_ids, list) else []
    ended = workers[:-1] if row.status == SUCCESSFUL else workers
    before = len(ended) - len(errors)
    # The row has forgotten the workers before these.
    first = max(0, row.attempt - len(workers) - bool(row.worker_id)) + 1
    for error in errors[: max(0, -before)]:
        yield None, None, error
    for n, worker in enumerate(workers):
        yield first + n, worker, errors[n - before] if 0 <= n - before < len(errors) else None
    if row.worker_id:
        yield first + len(workers), row.worker_id, None
    for error in after:
        yield None, None, error


def _label(name: str) -> str:
    field: Any = ScheduledTask._meta.get_field(name)
    return str(field.verbose_name)
