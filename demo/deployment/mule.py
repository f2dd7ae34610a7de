"""The mule of a uWSGI with lazy-apps, which can start a file but no function."""

from dbtasks.contrib.mule import taskrunner

taskrunner()
