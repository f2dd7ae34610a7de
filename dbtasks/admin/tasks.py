"""Rows of the queue in the admin: the list, the search, the page of one row.

Owns who may see and do what. Never edits a row: every change is an action.
"""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _

from .. import store
from ..base.result import FAILED, READY, RUNNING
from ..models import Hold, ScheduledTask
from .actions import TaskActions
from .changelist import BoundedPaginator, StateFilter, TaskList
from .columns import TaskColumns
from .databases import DatabaseFilter

# Newest rows that a search by path reads. No index serves it; this many take well under a second.
SEARCHED = 100_000
# The button of each action on the page of one row.
_BUTTONS = {"retry_failed": _("Retry"), "run_now": _("Run now"), "cancel": _("Cancel")}

_ROUTE = ("queue_name", "priority", "attempt")
_COUNTS = ("failures", "lost", "releases", "fence")
_MARKS = (("status", "hold", "cancel_requested"), ("schedule_key", "tick"), "policy")


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(TaskColumns, TaskActions):
    """The rows of the queue. They cannot be edited; every change is an action."""

    # What people look for first is on the left, because a narrow window cuts off the rest.
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
        "The whole id, or the beginning of the task's path among the newest 100,000 tasks."
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

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TaskList

    def lookup_allowed(self, lookup: str, *args: Any, **kwargs: Any) -> bool:
        # ?kwargs__contains=… in the URL would reveal masked secrets letter by letter.
        return lookup in (StateFilter.parameter_name, DatabaseFilter.parameter_name)

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
        # For the list it allows the actions; for one row it would allow editing.
        return obj is None and super().has_change_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request) and (obj is None or obj.is_finished)

    def delete_model(self, request: HttpRequest, obj: ScheduledTask) -> None:
        if not store.delete(str(obj._state.db), [obj.pk]):
            # The row was made READY again after the page was shown.
            raise PermissionDenied

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Django 6.1 always passes the location, 6.0 has no such argument.
        where = () if action_location is None else (action_location,)
        actions = super().get_actions(request, *where)
        # It would delete all selected rows, even running ones.
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
