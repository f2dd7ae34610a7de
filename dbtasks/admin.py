"""The queue in Django's admin: see rows, and act on them by hand.

Owns the list, the read-only details, the masking of secrets and the actions. Never runs or imports
task code: a row whose function is gone shows like any other. Never touches a running row but to
ask that it ends, and never writes to a row but through `store`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import flatten_fieldsets, quote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import DEFAULT_DB_ALIAS, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.tasks import task_backends
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext, ngettext, ngettext_lazy, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from . import payload, store, ticker, wakeup
from .backend import DatabaseBackend
from .exceptions import ScheduleError, TaskCancelled
from .mask import Mask, backend_of
from .models import (
    FAILED,
    READY,
    RUNNING,
    SUCCESSFUL,
    Hold,
    PeriodicTask,
    ScheduledTask,
    ScheduledTaskQuerySet,
    Worker,
)
from .store import periodic

# Rows that are counted, and so can be paged through; counting ten million takes seconds.
MAX_COUNT = 10_000
# Newest rows that a search by path reads: no index serves it, and this takes well under a second.
SEARCHED = 100_000
# Rows that an action moves in one transaction: short enough to hold no lock for long.
BATCH = 500
# Characters of the arguments in the list, of an error line, and of one text in the details.
MAX_PREVIEW, MAX_LINE, MAX_TEXT = 60, 120, 20_000

NOTHING = "–"

STATES = {
    "due": pgettext_lazy("Task", "Due"),
    "scheduled": pgettext_lazy("Task", "Scheduled"),
    "suspect": pgettext_lazy("Task", "Suspect"),
    "running": pgettext_lazy("Task", "Running"),
    "stopping": pgettext_lazy("Task", "Stopping"),
    "successful": pgettext_lazy("Task", "Successful"),
    "failed": pgettext_lazy("Task", "Failed"),
    "cancelled": pgettext_lazy("Task", "Cancelled"),
}
# Found among the running rows, and the failed ones: no index knows them.
_PARTS = {"stopping", "cancelled"}
_FINAL = {RUNNING: "running", SUCCESSFUL: "successful", FAILED: "failed"}


def state_of(row: ScheduledTask) -> str:
    """Return the key in STATES of what people call the row's state."""
    if row.status == READY:
        return row.hold or "due"
    if row.status == FAILED and row.errors and _is_cancel(row.errors[-1]):
        return "cancelled"
    if row.status == RUNNING and row.cancel_requested:
        return "stopping"
    return _FINAL[row.status]


def _is_cancel(error: tuple[str, str]) -> bool:
    return error[0] == store.class_path(TaskCancelled)


def database() -> str:
    """Return the alias of the database whose rows are shown: that of the first of our backends."""
    for alias in task_backends:
        backend = task_backends[alias]
        if isinstance(backend, DatabaseBackend):
            return backend.database
    return DEFAULT_DB_ALIAS


class Many(int):
    """A number of rows that was not counted to its end."""

    def __str__(self) -> str:
        return f"{int(self):,}+"


class BoundedPaginator(Paginator):
    """Counts, and pages through, the first MAX_COUNT rows only."""

    @cached_property
    def count(self) -> int:
        """Number of rows; Many if there are more than are counted."""
        return bounded_count(self.object_list)


def bounded_count(rows: Any) -> int:
    """Return how many rows there are, or Many(MAX_COUNT) if there are more."""
    count: int = rows.order_by().values("pk")[: MAX_COUNT + 1].count()
    return Many(MAX_COUNT) if count > MAX_COUNT else count


class TaskList(ChangeList):
    """The list in order of age, the newest first: the one order that needs no sorting."""

    def get_ordering(self, request: HttpRequest, queryset: Any) -> Any:
        return ["-id"]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        # What the list does not show, and may be large.
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer("return_value", "meta", "policy")

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if isinstance(self.result_count, Many):
            return
        # A database that is to sort these few rows may rather walk the whole table along its
        # key. Unsorted, their own index finds them.
        keys = self.queryset.order_by().values_list("pk", flat=True)[:MAX_COUNT]
        ids = sorted(keys, reverse=True)
        if self.multi_page and not (self.show_all and self.can_show_all):
            start = (self.page_num - 1) * self.list_per_page
            ids = ids[start : start + self.list_per_page]
        self.result_list = self.queryset.filter(pk__in=ids)


class StateFilter(admin.SimpleListFilter):
    """The states, each served by an index.

    Neither queue nor task are offered: of finished rows no index knows them, so a rare one would
    be looked for in the whole table. Successful rows need no index, for they are most of it.
    Cancelled rows are found among the failed ones, those that are asked to stop among the running.
    """

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, Any]]:
        return [(key, label) for key, label in STATES.items() if key not in _PARTS]

    def queryset(self, request: Any, queryset: Any) -> Any:
        state = self.value()
        return getattr(queryset, state)() if state in STATES.keys() - _PARTS else queryset


class Act(NamedTuple):
    """What an action does to a batch of rows, and what it says."""

    # The rows in the state that the transition starts from.
    rows: Callable[[ScheduledTaskQuerySet], ScheduledTaskQuerySet]
    # The transition: database, rows.
    move: Callable[[str, list[ScheduledTask]], int]
    # For the history of a row.
    note: Any
    # With %(moved)d; and with %(seen)d as well, when some rows were not moved.
    all: Any
    some: Any


def _ids(rows: Iterable[ScheduledTask]) -> list[UUID]:
    return [row.pk for row in rows]


def _cancel(db: str, rows: list[ScheduledTask]) -> int:
    """Cancel the rows; each stays as long as its own backend says."""
    by_backend = groupby(sorted(rows, key=lambda row: row.backend), lambda row: row.backend)
    return sum(store.cancel(db, _ids(some), _retain(alias)) for alias, some in by_backend)


def _retain(alias: str) -> Callable[[ScheduledTask], timedelta | None]:
    backend = backend_of(alias)
    # Of a backend that is gone nobody knows: for ever.
    return backend.retain_failed if backend else lambda row: None


def _expired(rows: Any) -> Any:
    return rows.finished().filter(delete_after__lte=store.now(rows.db))


RETRY = Act(
    lambda rows: rows.failed(),
    lambda db, rows: store.retry(db, _ids(rows)),
    _("Made ready again."),
    ngettext_lazy("%(moved)d task was made ready.", "%(moved)d tasks were made ready.", "moved"),
    _("%(moved)d of %(seen)d tasks were made ready; the others had moved on."),
)
RUN_NOW = Act(
    lambda rows: rows.scheduled(),
    lambda db, rows: store.run_now(db, _ids(rows)),
    _("Made due at once."),
    ngettext_lazy("%(moved)d task is due now.", "%(moved)d tasks are due now.", "moved"),
    _("%(moved)d of %(seen)d tasks are due now; the others were not scheduled."),
)
CANCEL = Act(
    lambda rows: rows.filter(status=READY),
    _cancel,
    _("Cancelled."),
    ngettext_lazy("%(moved)d task was cancelled.", "%(moved)d tasks were cancelled.", "moved"),
    _("%(moved)d of %(seen)d tasks were cancelled; the others had moved on."),
)
ASK = Act(
    lambda rows: rows.running(),
    lambda db, rows: store.request_cancel(db, _ids(rows)),
    _("Asked to stop."),
    ngettext_lazy(
        "%(moved)d running task was asked to stop.",
        "%(moved)d running tasks were asked to stop.",
        "moved",
    ),
    _("%(moved)d of %(seen)d running tasks were asked to stop; the others had moved on."),
)
DELETE = Act(
    _expired,
    lambda db, rows: store.delete(db, _ids(rows), expired=True),
    _("Deleted."),
    ngettext_lazy("%(moved)d task was deleted.", "%(moved)d tasks were deleted.", "moved"),
    _("%(moved)d of %(seen)d tasks were deleted; the others have not expired."),
)


_ROUTE = ("queue_name", "priority", "attempt")
_COUNTS = ("failures", "lost", "fence")
_MARKS = (("status", "hold", "cancel_requested"), ("unique_slot", "schedule_key", "tick"), "policy")


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(admin.ModelAdmin):
    """The rows of the queue: nothing can be edited, and what can be done is an action."""

    # From the left what people look for first: a narrow window cuts off the rest.
    list_display = ("state", "task", "call", "error", "when", "wait", "duration", *_ROUTE, "worker")
    list_display_links = ("task",)
    list_filter = (StateFilter,)
    list_per_page = 50
    list_max_show_all = 200
    sortable_by = ()
    paginator = BoundedPaginator
    # Both would count the whole table.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    search_fields = ("id", "task_path")
    search_help_text = _(
        "The whole id, or how the path of the task begins, among the newest 100,000 tasks."
    )
    actions = ("retry_failed", "run_now", "cancel", "delete_expired")
    fieldsets = (
        (None, {"fields": ("state", ("task_path", "id"), ("backend", *_ROUTE), "worker")}),
        (_("Call"), {"fields": ("arguments", "keyword_arguments")}),
        (_("Outcome"), {"fields": ("result", "attempts")}),
        (_("Times"), {"fields": ("timeline", ("wait", "duration"))}),
        (_("The row"), {"classes": ("collapse",), "fields": (_COUNTS, *_MARKS, "extra")}),
    )
    readonly_fields = flatten_fieldsets(fieldsets)

    class Media:
        css = {"all": ("dbtasks/admin.css",)}

    # What there is to see

    def get_queryset(self, request: HttpRequest) -> Any:
        return ScheduledTask.objects.using(database())

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TaskList

    def lookup_allowed(self, lookup: str, *args: Any, **kwargs: Any) -> bool:
        # ?kwargs__contains=… in the URL would tell masked secrets letter by letter.
        return lookup == StateFilter.parameter_name

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            return queryset.filter(pk=UUID(term)), False
        except ValueError:
            pass
        beyond = queryset.order_by("-pk").values_list("pk", flat=True)
        for oldest in beyond[SEARCHED : SEARCHED + 1]:
            queryset = queryset.filter(pk__gt=oldest)
        return queryset.filter(task_path__startswith=term), False

    # Who may do what

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Of the list it means the actions; of one row, that its fields could be edited.
        return obj is None and super().has_change_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request) and (obj is None or obj.is_finished)

    def delete_model(self, request: HttpRequest, obj: ScheduledTask) -> None:
        if not store.delete(database(), [obj.pk]):
            # It was made ready again after the page was shown.
            raise PermissionDenied

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Django 6.1 always names the location, 6.0 knows none.
        where = () if action_location is None else (action_location,)
        actions = super().get_actions(request, *where)
        # Deletes whatever is selected, running rows among it.
        actions.pop("delete_selected", None)
        return actions

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row, allowed = kwargs["obj"], self.get_actions(request)
        fitting = {
            "retry_failed": row.status == FAILED,
            "run_now": row.status == READY and row.hold == Hold.SCHEDULED,
            "cancel": row.status in (READY, RUNNING) and not row.cancel_requested,
        }
        context["task_actions"] = [
            (name, _BUTTONS[name]) for name, fits in fitting.items() if fits and name in allowed
        ]
        return super().render_change_form(request, context, *args, **kwargs)

    # Actions

    @admin.action(permissions=["change"], description=_("Retry failed tasks"))
    def retry_failed(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Make failed rows due again."""
        return self._act(request, queryset, RETRY)

    @admin.action(permissions=["change"], description=_("Run scheduled tasks now"))
    def run_now(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Make rows due that wait for their time."""
        return self._act(request, queryset, RUN_NOW)

    @admin.action(permissions=["change"], description=_("Cancel tasks"))
    def cancel(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Finish rows as FAILED that have not started; ask running ones to stop."""
        running = queryset.running()
        if running.exists():
            asked = self._act(request, running, ASK)
            queryset = queryset.exclude(status=RUNNING)
            if not queryset.exists():
                return asked
        return self._act(request, queryset, CANCEL)

    @admin.action(permissions=["delete"], description=_("Delete expired tasks"))
    def delete_expired(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Delete finished rows whose retention is over, after a confirmation."""
        if "confirmed" in request.POST:
            return self._act(request, queryset, DELETE)
        count = bounded_count(_expired(queryset))
        if not count:
            self.message_user(
                request, gettext("None of these tasks has expired."), messages.WARNING
            )
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Delete expired tasks"),
            "question": ngettext(
                "%(count)s task has expired. Delete it?",
                "%(count)s tasks have expired. Delete them?",
                count,
            )
            % {"count": count},
            "opts": self.opts,
            "media": self.media,
            "checkbox": ACTION_CHECKBOX_NAME,
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "select_across": request.POST.get("select_across", "0"),
        }
        template = "admin/dbtasks/scheduledtask/delete_expired.html"
        return TemplateResponse(request, template, context)

    def _act(self, request: HttpRequest, queryset: Any, act: Act) -> HttpResponse | None:
        """Move the rows that can be moved, in batches; say how many these were."""
        if request.POST.get("select_across") == "1":
            # Whoever means all rows that match does not want to hear how many are in other states.
            queryset = act.rows(queryset)
        seen = moved = 0
        for ids in _batches(queryset):
            seen += len(ids)
            moved += self._move(request, queryset.db, ids, act)
        sentence = (act.all if moved == seen else act.some) % {"moved": moved, "seen": seen}
        self.message_user(
            request, sentence, messages.SUCCESS if moved == seen else messages.WARNING
        )
        if "from_detail" not in request.POST:
            return None
        return HttpResponseRedirect(
            reverse(
                f"admin:{self.opts.app_label}_{self.opts.model_name}_change",
                args=[quote(request.POST[ACTION_CHECKBOX_NAME])],
                current_app=self.admin_site.name,
            )
        )

    def _move(self, request: HttpRequest, db: str, ids: list[UUID], act: Act) -> int:
        """Move a batch in one transaction with its log entries; wake runners of this process."""
        with transaction.atomic(db):
            # Locked, so that the log names exactly the rows that are moved. A row that somebody
            # else holds is on its way to another state: it is skipped, nobody waits for anybody.
            rows = act.rows(ScheduledTask.objects.using(db)).filter(pk__in=ids)
            locked = list(rows.only("task_path", "backend").select_for_update(skip_locked=True))
            if not locked:
                return 0
            moved = act.move(db, locked)
            self._log(request, locked, act)
            for alias in {row.backend for row in locked}:
                transaction.on_commit(partial(wakeup.notify, db, alias), using=db)
        return moved

    def _log(self, request: HttpRequest, rows: list[ScheduledTask], act: Act) -> None:
        # Not at the top: Django's admin may be imported without being installed.
        from django.contrib.admin.models import CHANGE, DELETION, LogEntry

        user: Any = request.user
        flag = DELETION if act is DELETE else CHANGE
        LogEntry.objects.log_actions(user.pk, rows, flag, str(act.note))

    # Columns

    @admin.display(description=_("state"))
    def state(self, row: ScheduledTask) -> str:
        """Show the state in words; the colour only repeats them."""
        key = state_of(row)
        return format_html('<span class="dbtasks-state {}">{}</span>', key, STATES[key])

    @admin.display(description=_("task"))
    def task(self, row: ScheduledTask) -> str:
        """Show the last three parts of the path, the whole of it in the title."""
        parts = row.task_path.split(".")
        short = f"…{'.'.join(parts[-3:])}" if len(parts) > 3 else row.task_path
        return format_html('<span title="{}">{}</span>', row.task_path, short)

    @admin.display(description=_("arguments"))
    def call(self, row: ScheduledTask) -> str:
        """Show how the arguments begin."""
        mask = Mask(row)
        args = [_json(item) for item in mask.args()]
        kwargs = [f"{k}={_json(v)}" for k, v in mask.value(row.kwargs or {}).items()]
        text = Truncator(", ".join([*args, *kwargs])).chars(MAX_PREVIEW)
        return format_html("<code>{}</code>", text) if text else ""

    @admin.display(description=_("wait"))
    def wait(self, row: ScheduledTask) -> str:
        """Show how long the row was due before it first started, or has been so far."""
        due = max(row.enqueued_at, row.run_after or row.enqueued_at)
        start = row.started_at or (timezone.now() if state_of(row) == "due" else None)
        # A retry moves run_after beyond the first start.
        return span(start - due) if start and start >= due else NOTHING

    @admin.display(description=_("duration"))
    def duration(self, row: ScheduledTask) -> str:
        """Show how long the last start took, or has taken so far."""
        state = state_of(row)
        end = timezone.now() if row.status == RUNNING else row.finished_at
        if row.last_attempted_at is None or end is None or state == "cancelled":
            return NOTHING
        return span(end - row.last_attempted_at)

    @admin.display(description=_("when"))
    def when(self, row: ScheduledTask) -> str:
        """Show the moment that matters in the row's state, seen from now."""
        at = row.finished_at or (row.last_attempted_at if row.status == RUNNING else row.run_after)
        return _moment(at or row.enqueued_at, relative=True)

    @admin.display(description=_("worker"))
    def worker(self, row: ScheduledTask) -> str:
        """Show who runs the row, or did so last."""
        return row.worker_id or (row.worker_ids[-1] if row.worker_ids else NOTHING)

    @admin.display(description=_("error"))
    def error(self, row: ScheduledTask) -> str:
        """Show the last error of a failed row in one line."""
        if row.status != FAILED or not row.errors:
            return ""
        path, text = row.errors[-1]
        line = error_line(path, Mask(row).text(text))
        return format_html('<span class="dbtasks-error">{}</span>', line)

    # Details

    @admin.display(description=_("arguments"))
    def arguments(self, row: ScheduledTask) -> str:
        """Show the positional arguments."""
        return _pretty(Mask(row).args())

    @admin.display(description=_("keyword arguments"))
    def keyword_arguments(self, row: ScheduledTask) -> str:
        """Show the keyword arguments."""
        return _pretty(Mask(row).value(row.kwargs or {}))

    @admin.display(description=_("return value"))
    def result(self, row: ScheduledTask) -> str:
        """Show what the task returned."""
        if row.status != SUCCESSFUL:
            return NOTHING
        return _pretty(Mask(row).value(row.return_value))

    @admin.display(description=_("meta"))
    def extra(self, row: ScheduledTask) -> str:
        """Show what rides along."""
        return NOTHING if row.meta is None else _pretty(Mask(row).value(row.meta))

    @admin.display(description=_("attempts"))
    def attempts(self, row: ScheduledTask) -> str:
        """Show each start with its worker, and the error it ended in."""
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
        # The exception's class is shown as text only: to resolve it would import code.
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
        """Show the moments of the row's life in order."""
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
            ((label, _moment(at), ago(at)) for label, at in moments),
        )
        return format_html('<table class="dbtasks-table"><tbody>{}</tbody></table>', rows)


_BUTTONS = {"retry_failed": _("Retry"), "run_now": _("Run now"), "cancel": _("Cancel")}


def _batches(queryset: Any) -> Iterator[list[UUID]]:
    """Yield the ids of the rows, the newest first, so that rows that come in are never reached."""
    ids = queryset.order_by("-pk").values_list("pk", flat=True)
    batch = list(ids[:BATCH])
    while batch:
        yield batch
        batch = list(ids.filter(pk__lt=batch[-1])[:BATCH])


def _starts(row: ScheduledTask) -> Iterator[tuple[int | None, str | None, Any]]:
    """Yield each start as number, worker and error or None; then errors without a start.

    Only the last errors are kept, so they are matched from the end; a running or successful start
    has none, and the cancel of a waiting row has no start.
    """
    errors = list(row.errors or [])
    waited = bool(errors) and _is_cancel(errors[-1]) and errors[-1][1] == str(TaskCancelled())
    after = [errors.pop()] if waited else []
    workers = list(row.worker_ids or [])
    ended = workers[:-1] if row.status == SUCCESSFUL else workers
    before = len(ended) - len(errors)
    for error in errors[: max(0, -before)]:
        yield None, None, error
    for n, worker in enumerate(workers):
        yield n + 1, worker, errors[n - before] if 0 <= n - before < len(errors) else None
    if row.worker_id:
        yield len(workers) + 1, row.worker_id, None
    for error in after:
        yield None, None, error


def error_line(path: str, text: str) -> str:
    """Return the exception's class, without module, and the last line of its message."""
    name = path.rpartition(".")[2]
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
    for prefix in (path, name):
        if last == prefix or last.startswith(f"{prefix}:"):
            last = last[len(prefix) + 1 :].strip()
            break
    return Truncator(f"{name}: {last}" if last else name).chars(MAX_LINE)


def span(length: timedelta) -> str:
    """Return the length in its two largest units: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min, 9 d 1 h."""
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
    """Return how far the moment is from now."""
    distance = timezone.now() - at
    if distance < timedelta():
        return gettext("in %s") % span(-distance)
    return gettext("%s ago") % span(distance)


def _moment(at: datetime, relative: bool = False) -> str:
    """Return the moment as HTML, to the second, or as its distance with that in the title."""
    whole = date_format(_local(at), "Y-m-d H:i:s")
    shown = ago(at) if relative else whole
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), whole, shown)


def _local(at: datetime) -> datetime:
    return timezone.localtime(at) if timezone.is_aware(at) else at


def _label(name: str) -> str:
    field: Any = ScheduledTask._meta.get_field(name)
    return str(field.verbose_name)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _pretty(value: Any) -> str:
    text = payload.clean(_json(value, indent=2), MAX_TEXT)
    return format_html('<pre class="dbtasks-json">{}</pre>', text)


@admin.register(Worker)
class WorkerAdmin(admin.ModelAdmin):
    """The runners, as they see each other: to look at only."""

    list_display = ("worker_id", "backend", "state", "started_at", "beat_at", "pid")
    ordering = ("-started_at",)
    list_filter = ("state",)
    readonly_fields = tuple(field.name for field in Worker._meta.fields)
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> Any:
        return Worker.objects.using(database())

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Its runner would have to join anew, and nobody would miss it if it did not.
        return False


class PeriodicForm(forms.ModelForm):
    """A schedule made by people: checked with the sentences that settings are checked with."""

    args = forms.JSONField(label=_("arguments"), required=False, initial=list)
    kwargs = forms.JSONField(label=_("keyword arguments"), required=False, initial=dict)

    class Meta:
        model = PeriodicTask
        fields = (
            "key",
            "backend",
            "task_path",
            "spec",
            "timezone",
            "args",
            "kwargs",
            "retain",
            "missed",
            "overlap",
        )
        help_texts = {
            "task_path": _("The path of a registered task."),
            "spec": _("A cron line such as 30 3 * * 1-5, or a duration such as 15m."),
            "timezone": _("The time zone whose clocks count."),
            "retain": _("How long finished rows stay, such as 7d; empty is what the task says."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = [a for a in task_backends if isinstance(task_backends[a], DatabaseBackend)]
        if "backend" in self.fields:
            self.fields["backend"] = forms.ChoiceField(
                label=_("backend"), choices=[(alias, alias) for alias in aliases]
            )
            self.fields["timezone"].initial = timezone.get_default_timezone_name()

    def clean(self) -> Any:
        values = super().clean()
        if self.errors or values is None:
            return values
        names = [name for name in self.Meta.fields if name in values]
        row = PeriodicTask(**{name: values[name] for name in names})
        backend: Any = task_backends[row.backend]
        try:
            plan = ticker.plan_of(row)
            ticker.check_call(backend, plan.task_path, plan.args, plan.kwargs)
        except ScheduleError as error:
            raise ValidationError(str(error)) from error
        self._check_key(row)
        return values

    def _check_key(self, row: PeriodicTask) -> None:
        backend: Any = task_backends[row.backend]
        others = periodic.of(backend.database, row.backend).exclude(pk=self.instance.pk)
        taken = {other.key.casefold() for other in others} | {
            key.casefold() for key in ticker.plans_of(backend)
        }
        if row.key.casefold() in taken:
            raise ValidationError(
                {"key": _("Another schedule of this backend has this key. Choose another.")}
            )


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(admin.ModelAdmin):
    """The schedules: those of settings to look at and to pause, those of people to edit."""

    form = PeriodicForm
    fields = PeriodicForm.Meta.fields
    list_display = (
        "key",
        "task_path",
        "schedule",
        "next",
        "last",
        "is_active",
        "origin",
        "backend",
    )
    list_filter = ("origin", "paused")
    search_fields = ("key", "task_path")
    sortable_by = ()
    ordering = ("backend", "key")
    list_per_page = 50
    show_full_result_count = False
    actions = ("run_now", "pause", "resume")

    def get_queryset(self, request: HttpRequest) -> Any:
        return PeriodicTask.objects.using(database()).order_by("backend", "key")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        names = super().get_fields(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return names
        # Who may not change the arguments need not know the secrets in them.
        return [f"masked_{name}" if name in ("args", "kwargs") else name for name in names]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.get_fields(request, obj) if name.startswith("masked_")]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # What settings say is changed there.
        return super().has_change_permission(request) and (obj is None or _is_by_hand(obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request) and (obj is None or _is_by_hand(obj))

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        where = () if action_location is None else (action_location,)
        actions = super().get_actions(request, *where)
        # Deletes schedules of settings, too, which runners have in mind.
        actions.pop("delete_selected", None)
        return actions

    def save_model(self, request: HttpRequest, obj: PeriodicTask, form: Any, change: bool) -> None:
        obj.origin = PeriodicTask.Origin.ADMIN
        periodic.save(database(), obj)

    def delete_model(self, request: HttpRequest, obj: PeriodicTask) -> None:
        periodic.forget(database(), [obj.pk])

    @admin.action(description=_("Run now"), permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: Any) -> None:
        """Enqueue one run of each, and leave the schedules as they are."""
        for row in queryset:
            backend = backend_of(row.backend)
            try:
                if backend is None:
                    raise ScheduleError(f"There is no backend {row.backend!r} in TASKS.")
                done = ticker.run_now(backend, row)
            except ScheduleError as error:
                self.message_user(request, f"{row.key}: {error}", messages.ERROR)
                continue
            if done:
                self.log_change(request, row, str(_("Run now.")))
                text, level = _("%s runs now."), messages.SUCCESS
            else:
                text, level = _("%s: the run before has not finished."), messages.WARNING
            self.message_user(request, text % row.key, level)

    @admin.action(description=_("Pause"), permissions=["change"])
    def pause(self, request: HttpRequest, queryset: Any) -> None:
        """Fire them no more, until they are resumed."""
        rows = list(queryset.filter(paused=False))
        count = periodic.pause(queryset.db, [row.pk for row in rows])
        text = ngettext("%d schedule was paused.", "%d schedules were paused.", count)
        self._tell(request, rows, _("Paused."), text % count)

    @admin.action(description=_("Resume"), permissions=["change"])
    def resume(self, request: HttpRequest, queryset: Any) -> None:
        """Fire them again, from the next tick on."""
        rows = list(queryset.filter(paused=True))
        count = periodic.resume(queryset.db, [row.pk for row in rows])
        text = ngettext("%d schedule was resumed.", "%d schedules were resumed.", count)
        self._tell(request, rows, _("Resumed."), text % count)

    def _tell(self, request: HttpRequest, rows: list[PeriodicTask], note: Any, text: str) -> None:
        for row in rows:
            self.log_change(request, row, str(note))
        self.message_user(request, text, messages.SUCCESS)

    @admin.display(description=_("arguments"))
    def masked_args(self, row: PeriodicTask) -> str:
        """Show the arguments without their secrets."""
        return _json(Mask(row).args())

    @admin.display(description=_("keyword arguments"))
    def masked_kwargs(self, row: PeriodicTask) -> str:
        """Show the keyword arguments without their secrets."""
        return _json(Mask(row).value(row.kwargs or {}))

    @admin.display(description=_("schedule"))
    def schedule(self, row: PeriodicTask) -> str:
        """Show the line and its zone."""
        return f"{row.spec} ({row.timezone})"

    @admin.display(description=_("next run"))
    def next(self, row: PeriodicTask) -> str:
        """Show when it ticks next."""
        return NOTHING if row.paused else _moment(row.next_tick, relative=True)

    @admin.display(description=_("last run"))
    def last(self, row: PeriodicTask) -> str:
        """Show its last run, and what became of it."""
        if row.last_tick is None:
            return NOTHING
        [run] = periodic.last_runs(database(), [row])
        when = _moment(row.last_tick, relative=True)
        if run is None:
            return when
        url = reverse("admin:dbtasks_scheduledtask_change", args=[run.pk])
        key = state_of(run)
        return format_html(
            '<a href="{}"><span class="dbtasks-state {}">{}</span></a> {}',
            url,
            key,
            STATES[key],
            when,
        )

    @admin.display(description=_("active"), boolean=True)
    def is_active(self, row: PeriodicTask) -> bool:
        """Show whether it is not paused."""
        return not row.paused


def _is_by_hand(row: PeriodicTask) -> bool:
    return row.origin == PeriodicTask.Origin.ADMIN
