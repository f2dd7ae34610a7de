"""Which databases hold a queue, and which of them a page shows.

Owns the choice, its filter, and that links keep it. Never joins rows of two databases.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.contrib import admin
from django.contrib.admin.views.main import PAGE_VAR
from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..backend import our_backends

PARAMETER = "database"
# Where a request keeps the database of the row that it is about.
_CHOSEN = "_dbtasks_database"
# The parameter in which pages of one row keep the filters of the list.
_FILTERS = "_changelist_filters"


def databases() -> dict[str, list[str]]:
    """Return the databases of our backends, each with the aliases of its backends."""
    found: dict[str, list[str]] = {}
    for backend in our_backends():
        found.setdefault(backend.database, []).append(backend.alias)
    # Rows that are left behind show when no backend is ours any more.
    return found or {DEFAULT_DB_ALIAS: []}


def shown(request: HttpRequest) -> str:
    """Return the database that the page shows: the one in the URL, else the first."""
    known = databases()
    filters = dict(parse_qsl(request.GET.get(_FILTERS, "")))
    named = request.GET.get(PARAMETER) or filters.get(PARAMETER, "")
    first = next(iter(known))
    return str(getattr(request, _CHOSEN, named if named in known else first))


def show(request: HttpRequest, db: str) -> None:
    """Show that database for the rest of the request."""
    setattr(request, _CHOSEN, db)


class DatabaseFilter(admin.SimpleListFilter):
    """Chooses the database, if backends use more than one."""

    title = _("database")
    parameter_name = PARAMETER

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        self._shown = shown(request)
        super().__init__(request, *args)

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, Any]]:
        return [(db, f"{db} ({', '.join(aliases)})") for db, aliases in databases().items()]

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 1

    def queryset(self, request: Any, queryset: Any) -> Any:
        # get_queryset() has chosen the database already.
        return queryset

    def choices(self, changelist: Any) -> Iterator[Any]:
        # There is no "All": each list is of one database.
        for db, title in self.lookup_choices:
            yield {
                "selected": db == self._shown,
                "query_string": changelist.get_query_string({PARAMETER: db}, [PAGE_VAR]),
                "display": title,
            }


class QueueAdmin(admin.ModelAdmin):
    """An admin of rows that are in the database of their backend."""

    # Whether a primary key names one row in all databases.
    has_unique_keys = True

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = self.model._default_manager.using(shown(request))
        return rows.order_by(*self.get_ordering(request))

    def get_list_filter(self, request: HttpRequest) -> Any:
        return (DatabaseFilter, *super().get_list_filter(request))

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        row = super().get_object(request, object_id, from_field)
        if row is None and self.has_unique_keys:
            chosen = shown(request)
            for db in databases().keys() - {chosen}:
                show(request, db)
                if row := super().get_object(request, object_id, from_field):
                    return row
            show(request, chosen)
        return row

    def get_preserved_filters(self, request: HttpRequest) -> str:
        """Return the filters that links keep, the database included."""
        text = super().get_preserved_filters(request)
        if len(databases()) < 2:
            return text
        own = parse_qsl(dict(parse_qsl(text)).get(_FILTERS, ""))
        kept = [(name, value) for name, value in own if name != PARAMETER]
        return urlencode({_FILTERS: urlencode([*kept, (PARAMETER, shown(request))])})
