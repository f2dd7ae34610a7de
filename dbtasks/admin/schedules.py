"""Schedules in the admin: those of settings can be paused, those made in the admin edited.

Owns their form and their actions. Never fires a tick by itself.
"""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.tasks import task_backends
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .. import firing
from ..backend import backend_of, our_backends
from ..exceptions import ScheduleError
from ..models import PeriodicTask
from ..stats import last_run
from ..store import periodic
from .changelist import database
from .mask import Mask
from .render import NOTHING, STATES, as_json, moment, state_of


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
        names = [name for name in self.Meta.fields if name in values]
        row = PeriodicTask(**{name: values[name] for name in names})
        backend: Any = task_backends[row.backend]
        try:
            entry = firing.entry_of(row)
            firing.check_call(backend, entry.task_path, entry.args, entry.kwargs)
        except ScheduleError as error:
            raise ValidationError(str(error)) from error
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
class PeriodicTaskAdmin(admin.ModelAdmin):
    """The schedules. Those of settings can be paused, those made in the admin edited."""

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
        # Users who may not change the arguments do not see the secrets in them.
        return [f"masked_{name}" if name in ("args", "kwargs") else name for name in names]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.get_fields(request, obj) if name.startswith("masked_")]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Schedules of settings are changed in the settings.
        return super().has_change_permission(request) and (obj is None or _is_from_admin(obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request) and (obj is None or _is_from_admin(obj))

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        where = () if action_location is None else (action_location,)
        actions = super().get_actions(request, *where)
        # It would also delete schedules of settings, which runners still fire.
        actions.pop("delete_selected", None)
        return actions

    def save_model(self, request: HttpRequest, obj: PeriodicTask, form: Any, change: bool) -> None:
        obj.origin = PeriodicTask.Origin.ADMIN
        periodic.save(database(), obj)

    def delete_model(self, request: HttpRequest, obj: PeriodicTask) -> None:
        periodic.forget(database(), [obj.pk])

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
        return as_json(Mask(row).value(row.kwargs or {}))

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
        run = last_run(database(), row)
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


def _is_from_admin(row: PeriodicTask) -> bool:
    return row.origin == PeriodicTask.Origin.ADMIN
