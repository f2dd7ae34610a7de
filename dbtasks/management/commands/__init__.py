"""What ``manage.py`` gains: taskrunner, purgetasks, and dbtasks with its verbs."""
