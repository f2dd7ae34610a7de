"""Workers in the admin, read-only.

Owns the list. Never changes or deletes a worker.
"""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from ..models import Worker
from .databases import QueueAdmin


@admin.register(Worker)
class WorkerAdmin(QueueAdmin):
    """The runners, as they see each other. Read-only."""

    list_display = ("worker_id", "backend", "state", "started_at", "beat_at", "pid")
    ordering = ("-started_at",)
    list_filter = ("state",)
    readonly_fields = tuple(field.name for field in Worker._meta.fields)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Its runner would have to join again; if it had died, it would not be declared lost.
        return False
