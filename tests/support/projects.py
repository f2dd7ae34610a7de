"""A Django project of a user, in a folder and a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import django

import dbtasks

SETTINGS = """
SECRET_KEY = "for this test only"
INSTALLED_APPS = ["shop", "dbtasks"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}}
USE_TZ = True
"""


def run_in_project(files: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with those arguments in a project that has those files in its app ``shop``.

    Names that begin with ``../`` lie beside the app.
    """
    roots = [str(Path(module.__file__).parent.parent) for module in (dbtasks, django)]
    environment = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join(["", *roots]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        shop = Path(folder, "shop")
        shop.mkdir()
        for name, text in {"__init__.py": "", "../settings.py": SETTINGS, **files}.items():
            path = Path(os.path.normpath(shop / name))
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
