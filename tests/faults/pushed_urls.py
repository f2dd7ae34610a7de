"""The URLs of a web process in the storm of pushes: hints only."""

from django.urls import path

from dbtasks.contrib.http import Bearer, endpoints

# Nobody has this token: what arrives has the signature of a hint, or is refused.
urlpatterns = [path("tasks/", endpoints(auth=[Bearer("nobody" * 8)], interval=2))]
