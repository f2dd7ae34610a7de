"""The schema.

Owns the tables, and how those of django-dbtasks become ours. Never changes a row of ours.

Read in this order: _django_dbtasks, 0001_queue.
"""
