"""What Django's own test cases for tasks ask of any backend, asked of this one.

After tests/tasks of Django 6.1, in words of our own; what only 6.1 can do is skipped on 6.0.
"""
