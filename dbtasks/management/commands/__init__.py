"""What ``manage.py`` gains: taskrunner and purgetasks."""
