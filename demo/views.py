"""The demo's page: enqueue tasks and watch them."""

import uuid
from http import HTTPStatus

from django import forms
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.tasks import default_task_backend
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from .board import BLANK, KINDS, MOST_UNFINISHED, board, rows

# Tasks that one click may enqueue.
MAX_COUNT = 50


class EnqueueForm(forms.Form):
    """What a visitor may enqueue."""

    kind = forms.ChoiceField(
        choices=[(kind.name, kind.title) for kind in KINDS.values()], initial="quick"
    )
    text = forms.CharField(max_length=40, initial="world", label="Name")
    count = forms.IntegerField(min_value=1, max_value=MAX_COUNT, initial=1, label="How many")

    def clean(self) -> None:
        """Refuse more where much is left to do."""
        waiting = rows().exclude(status__in=("SUCCESSFUL", "FAILED"))
        if len(waiting.values_list("id")[:MOST_UNFINISHED]) >= MOST_UNFINISHED:
            raise forms.ValidationError(
                f"{MOST_UNFINISHED:,} tasks wait already. Try again when some are done."
            )

    def enqueue(self) -> int:
        """Enqueue what was asked for; return how many tasks that is."""
        task, count = KINDS[self.cleaned_data["kind"]].task, self.cleaned_data["count"]
        names = [self.cleaned_data["text"]]
        if count > 1:
            names = [f"{names[0]} {n}" for n in range(1, count + 1)]
        task.enqueue_many([([name], {}) for name in names])
        return len(names)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def index(request: HttpRequest) -> HttpResponse:
    """Show the page; enqueue tasks on POST."""
    form = EnqueueForm(request.POST or None, initial={"kind": "quick"})
    status = HTTPStatus.OK
    if request.method == "POST":
        if form.is_valid():
            form.enqueue()
            return _done(request)
        status = HTTPStatus.BAD_REQUEST
        if _wants_json(request):
            errors = [error for found in form.errors.values() for error in found]
            return JsonResponse({"errors": errors}, status=status)
    context = {"form": form, "kinds": KINDS.values(), "blank": BLANK} | board()
    return render(request, "demo/index.html", context, status=status)


@never_cache
@require_GET
def state(request: HttpRequest) -> HttpResponse:
    """Return what the page shows, for its script."""
    return JsonResponse(board())


@require_POST
def cancel(request: HttpRequest, id: uuid.UUID) -> HttpResponse:
    """Cancel one of the page's tasks."""
    if rows().filter(pk=id).exists():
        default_task_backend.cancel(str(id))
    return _done(request)


@require_POST
def retry(request: HttpRequest, id: uuid.UUID) -> HttpResponse:
    """Run one of the page's failed tasks again."""
    if rows().filter(pk=id).exists():
        default_task_backend.retry(str(id))
    return _done(request)


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _done(request: HttpRequest) -> HttpResponse:
    """Return what follows a change: what the page shows now, or the page itself."""
    if _wants_json(request):
        return JsonResponse(board())
    return redirect("index")
