"""The demo's pages: one to play with, and the admin."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("state.json", views.state, name="state"),
    path("tasks/<uuid:id>/cancel/", views.cancel, name="cancel"),
    path("tasks/<uuid:id>/retry/", views.retry, name="retry"),
    path("admin/", admin.site.urls),
    # The admin names no icon of its own, so browsers ask for this one.
    path("favicon.ico", RedirectView.as_view(url=static("demo/icon.svg"))),
]
