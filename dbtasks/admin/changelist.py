"""The list of rows, for tables of any size.

Owns its order, its paging and its filter, each served by an index. Never counts the whole table.
"""

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from .render import _PARTS, STATES

# Rows that are counted, and so can be paged through. Counting ten million rows takes seconds.
MAX_COUNT = 10_000


class Many(int):
    """A count of rows that stopped before the last one."""

    def __str__(self) -> str:
        return f"{int(self):,}+"


class BoundedPaginator(Paginator):
    """Counts and pages through the first MAX_COUNT rows only."""

    @cached_property
    def count(self) -> int:
        """The number of rows; Many if there are more than MAX_COUNT."""
        return bounded_count(self.object_list)


def bounded_count(rows: Any) -> int:
    """Return how many rows there are, or Many(MAX_COUNT) if there are more."""
    count: int = rows.order_by().values("pk")[: MAX_COUNT + 1].count()
    return Many(MAX_COUNT) if count > MAX_COUNT else count


class TaskList(ChangeList):
    """The list, newest row first: the only order that needs no sorting."""

    def get_ordering(self, request: HttpRequest, queryset: Any) -> Any:
        return ["-id"]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        # The list does not show these fields, which may be large. It needs the meta, which notes
        # the arguments that are secrets.
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer("return_value", "policy")

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if isinstance(self.result_count, Many):
            return
        # To sort these few rows, a database may read the whole table along its primary key.
        # Without a sort it finds them by their own index.
        keys = self.queryset.order_by().values_list("pk", flat=True)[:MAX_COUNT]
        ids = sorted(keys, reverse=True)
        if self.multi_page and not (self.show_all and self.can_show_all):
            start = (self.page_num - 1) * self.list_per_page
            ids = ids[start : start + self.list_per_page]
        self.result_list = self.queryset.filter(pk__in=ids)


class StateFilter(admin.SimpleListFilter):
    """Filters by state; each state is served by an index.

    There is no filter by queue or task: no index of finished rows contains them, so a search for a
    rare one would read the whole table. Successful rows need no index, because they are most of the
    table. Cancelled rows are listed as failed, rows that are asked to stop as running.
    """

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, Any]]:
        return [(key, label) for key, label in STATES.items() if key not in _PARTS]

    def queryset(self, request: Any, queryset: Any) -> Any:
        state = self.value()
        return getattr(queryset, state)() if state in STATES.keys() - _PARTS else queryset
