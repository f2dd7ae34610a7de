"""Settings of the site that runs tasks by HTTP while hints are measured."""

from demo.settings import *  # noqa: F403

DEBUG = False
ROOT_URLCONF = "benchmarks.urls"
