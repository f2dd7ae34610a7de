"""Actions on rows in the admin.

Owns the actions, their confirmation, their messages and their entries in the log. Never writes to a
row except through an operation.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import quote
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..backend import retain_failed
from ..base.result import RUNNING
from ..models import ScheduledTask
from ..operations import (
    CANCEL,
    DELETE_EXPIRED,
    REQUEST_CANCEL,
    RETRY,
    RUN_NOW,
    Operation,
    expired,
)
from .changelist import bounded_count
from .databases import QueueAdmin

# Rows that an action changes in one transaction: few, so that it holds its locks for a short time.
BATCH = 500


class TaskActions(QueueAdmin):
    """The actions on rows."""

    @admin.action(permissions=["change"], description=_("Retry failed tasks"))
    def retry_failed(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Make failed rows due again."""
        return self._apply(request, queryset, RETRY)

    @admin.action(permissions=["change"], description=_("Run scheduled tasks now"))
    def run_now(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Make scheduled rows due now."""
        return self._apply(request, queryset, RUN_NOW)

    @admin.action(permissions=["change"], description=_("Cancel tasks"))
    def cancel(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Make waiting rows FAILED; ask running ones to stop."""
        running = queryset.running()
        if running.exists():
            asked = self._apply(request, running, REQUEST_CANCEL)
            queryset = queryset.exclude(status=RUNNING)
            if not queryset.exists():
                return asked
        return self._apply(request, queryset, CANCEL)

    @admin.action(permissions=["delete"], description=_("Delete expired tasks"))
    def delete_expired(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Delete finished rows whose retention is over, after a confirmation."""
        if "confirmed" in request.POST:
            return self._apply(request, queryset, DELETE_EXPIRED)
        count = bounded_count(expired(queryset))
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

    def _apply(
        self, request: HttpRequest, queryset: Any, operation: Operation
    ) -> HttpResponse | None:
        """Apply the operation in batches to the rows that it fits; show how many these were."""
        if request.POST.get("select_across") == "1":
            # If all matching rows are selected, the message does not count those it does not fit.
            queryset = operation.rows(queryset)
        seen = moved = 0
        for ids in _batches(queryset):
            seen += len(ids)
            moved += self._move(request, queryset.db, ids, operation)
        sentence = (operation.all if moved == seen else operation.some) % {
            "moved": moved,
            "seen": seen,
        }
        self.message_user(
            request, sentence, messages.SUCCESS if moved == seen else messages.WARNING
        )
        if "from_detail" not in request.POST:
            return None
        url = reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_change",
            args=[quote(request.POST[ACTION_CHECKBOX_NAME])],
            current_app=self.admin_site.name,
        )
        kept: Any = {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}
        return HttpResponseRedirect(add_preserved_filters(kept, url))

    def _move(self, request: HttpRequest, db: str, ids: list[UUID], operation: Operation) -> int:
        """Apply the operation to a batch and log it in one transaction; return how many changed."""
        with transaction.atomic(db):
            # Locked, so that the log names exactly the rows that change. A row that is locked by
            # another transaction is about to change its state: it is skipped without waiting.
            rows = operation.rows(ScheduledTask.objects.using(db)).filter(pk__in=ids)
            locked = list(
                rows.only("task_path", "backend", "queue_name", "priority").select_for_update(
                    skip_locked=True
                )
            )
            if not locked:
                return 0
            moved = operation.apply(db, locked, retain_failed)
            self._log(request, locked, operation)
        return moved

    def _log(self, request: HttpRequest, rows: list[ScheduledTask], operation: Operation) -> None:
        # Imported here, because this module may be imported without the admin being installed.
        from django.contrib.admin.models import CHANGE, DELETION, LogEntry

        user: Any = request.user
        flag = DELETION if operation is DELETE_EXPIRED else CHANGE
        LogEntry.objects.log_actions(user.pk, rows, flag, str(operation.note))


def _batches(queryset: Any) -> Iterator[list[UUID]]:
    """Yield the ids of the rows in batches, newest first, so that new rows are left out."""
    ids = queryset.order_by("-pk").values_list("pk", flat=True)
    batch = list(ids[:BATCH])
    while batch:
        yield batch
        batch = list(ids.filter(pk__lt=batch[-1])[:BATCH])
