"""URLs of the site that runs tasks by HTTP while hints are measured."""

from django.urls import path

from dbtasks.contrib.http import Signed, endpoints

urlpatterns = [path("tasks/", endpoints(auth=[Signed()]))]
