"""Schedules in the admin: those of settings can be paused, those made in the admin edited.

Owns their form and their actions. Never fires a tick by itself.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.tasks import task_backends
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .. import firing
from ..backend import DatabaseBackend, backend_of, our_backends
from ..exceptions import DurationError, ScheduleError
from ..models import PeriodicTask
from ..schedule.duration import duration_or_zero
from ..schedule.zones import parse_zone
from ..stats import is_orphaned, last_run
from ..store import periodic
from .databases import PARAMETER, QueueAdmin, databases, show
from .mask import Mask
from .render import NOTHING, STATES, as_json, moment, state_of


def _check_task(backend: DatabaseBackend, row: PeriodicTask) -> None:
    # The functions stand for arguments, which are not checked yet.
    firing.check_call(backend, firing.entry_of(row), list, dict)


def _check_arguments(backend: DatabaseBackend, row: PeriodicTask) -> None:
    entry = firing.entry_of(row)
    firing.check_call(backend, entry, entry.args, entry.kwargs)


def _check_shapes(backend: DatabaseBackend, row: PeriodicTask) -> None:
    if row.kwargs and not isinstance(row.kwargs, dict):
        raise ScheduleError("kwargs must be a dict.")


# The checks of a schedule in their order, each with the field that its message belongs to.
_CHECKS: tuple[tuple[str, Callable[[DatabaseBackend, PeriodicTask], Any]], ...] = (
    ("retain", lambda backend, row: row.retain and duration_or_zero(row.retain)),
    ("timezone", lambda backend, row: parse_zone(row.timezone)),
    ("spec", lambda backend, row: row.schedule),
    ("kwargs", _check_shapes),
    ("args", lambda backend, row: firing.entry_of(row)),
    ("task_path", _check_task),
    ("args", _check_arguments),
)


class PeriodicForm(forms.ModelForm):
    """The form of a schedule, with the same checks and messages as for schedules of settings."""

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
            "spec": _("A cron expression such as 30 3 * * 1-5, or a duration such as 15m."),
            "timezone": _("The time zone of the cron expression."),
            "retain": _("How long finished rows stay, such as 7d. If empty, the task decides."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = [backend.alias for backend in our_backends()]
        if "backend" in self.fields:
            self.fields["backend"] = forms.ChoiceField(
                label=_("backend"), choices=[(alias, alias) for alias in aliases]
            )
            self.fields["timezone"].initial = timezone.get_default_timezone_name()

    def clean(self) -> Any:
        values = super().clean()
        if self.errors or values is None:
            return values
        row = PeriodicTask(**{name: values[name] for name in self.Meta.fields if name in values})
        backend: Any = task_backends[row.backend]
        if self.instance.pk and self.instance._state.db != backend.database:
            message = _("This backend is in another database. Add a new schedule for it.")
            self.add_error("backend", message)
            return values
        # Where Django looks for a schedule with the same key.
        self.instance._state.db = backend.database
        for name, check in _CHECKS:
            try:
                check(backend, row)
            except (DurationError, ScheduleError) as error:
                self.add_error(name, str(error))
                return values
        self._check_key(row)
        return values

    def _check_key(self, row: PeriodicTask) -> None:
        backend: Any = task_backends[row.backend]
        others = periodic.of(backend.database, row.backend).exclude(pk=self.instance.pk)
        taken = {other.key.casefold() for other in others} | {
            key.casefold() for key in firing.entries_of(backend)
        }
        if row.key.casefold() in taken:
            raise ValidationError(
                {"key": _("Another schedule of this backend has this key. Choose another.")}
            )


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(QueueAdmin):
    """The schedules. Those of settings can be paused, those made in the admin edited."""

    has_unique_keys = False
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

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        names = super().get_fields(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return names
        # Users who may not change the arguments do not see the secrets in them.
        return [f"masked_{name}" if name in ("args", "kwargs") else name for name in names]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.get_fields(request, obj) if name.startswith("masked_")]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Schedules of settings are changed in the settings.
        return super().has_change_permission(request) and (obj is None or _is_from_admin(obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if not super().has_delete_permission(request):
            return False
        return obj is None or _is_from_admin(obj) or _is_orphaned(obj)

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        where = () if action_location is None else (action_location,)
        actions = super().get_actions(request, *where)
        # It would also delete schedules of settings, which runners still fire.
        actions.pop("delete_selected", None)
        return actions

    def save_model(self, request: HttpRequest, obj: PeriodicTask, form: Any, change: bool) -> None:
        obj.origin = PeriodicTask.Origin.ADMIN
        # The form has checked that the backend is one of ours, and set its database.
        show(request, _db_of(obj))
        periodic.save(_db_of(obj), obj)

    def response_add(
        self, request: HttpRequest, obj: PeriodicTask, post_url_continue: Any = None
    ) -> HttpResponse:
        if len(databases()) < 2:
            return super().response_add(request, obj, post_url_continue)
        # Django's message would have a link without the database.
        self.message_user(request, _("“%s” was added.") % obj, messages.SUCCESS)
        url = reverse("admin:dbtasks_periodictask_changelist")
        return HttpResponseRedirect(f"{url}?{urlencode({PARAMETER: _db_of(obj)})}")

    def delete_model(self, request: HttpRequest, obj: PeriodicTask) -> None:
        if not periodic.forget(_db_of(obj), obj):
            # A runner reported that it has the schedule after the page was shown.
            raise PermissionDenied

    @admin.action(description=_("Run now"), permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: Any) -> None:
        """Enqueue one run of each; the schedules themselves do not change."""
        for row in queryset:
            backend = backend_of(row.backend)
            try:
                if backend is None:
                    raise ScheduleError(f"There is no backend {row.backend!r} in TASKS.")
                done = firing.run_now(backend, row)
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
        """Stop firing them until they are resumed."""
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
        return as_json(Mask(row).args())

    @admin.display(description=_("keyword arguments"))
    def masked_kwargs(self, row: PeriodicTask) -> str:
        """Show the keyword arguments without their secrets."""
        return as_json(Mask(row).kwargs())

    @admin.display(description=_("schedule"))
    def schedule(self, row: PeriodicTask) -> str:
        """Show the expression and its time zone."""
        return f"{row.spec} ({row.timezone})"

    @admin.display(description=_("next run"))
    def next(self, row: PeriodicTask) -> str:
        """Show the next tick."""
        return NOTHING if row.paused else moment(row.next_tick, relative=True)

    @admin.display(description=_("last run"))
    def last(self, row: PeriodicTask) -> str:
        """Show the last run and its state."""
        if row.last_tick is None:
            return NOTHING
        run = last_run(_db_of(row), row)
        when = moment(row.last_tick, relative=True)
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


def _is_orphaned(row: PeriodicTask) -> bool:
    """Return whether neither this process nor a live runner has the schedule in its settings."""
    backend = backend_of(row.backend)
    is_own = backend is not None and row.key in firing.entries_of(backend)
    return not is_own and is_orphaned(_db_of(row), row)


def _db_of(row: PeriodicTask) -> str:
    """Return the database of a row that was read, or that the form has placed."""
    return str(row._state.db)


def _is_from_admin(row: PeriodicTask) -> bool:
    return row.origin == PeriodicTask.Origin.ADMIN
