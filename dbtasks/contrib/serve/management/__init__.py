"""The app's part of ``manage.py``.

Owns nothing itself. Never imported by other code.
"""
