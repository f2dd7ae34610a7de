"""A small Django project that uses dbtasks; `manage.py` runs it."""
