"""What ``manage.py`` gains: demo."""
