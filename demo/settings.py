"""Settings of the demo project; what differs between machines comes from the environment."""

import os
from pathlib import Path

from django.utils.csp import CSP

from demo.databases import database, sqlite_url

BASE_DIR = Path(__file__).resolve().parent.parent

# For the demo only: a real project keeps its key out of the repository.
SECRET_KEY = "dbtasks-demo-key-that-protects-nothing"
DEBUG = os.environ.get("DBTASKS_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "dbtasks",
    "dbtasks.contrib.serve",
    "demo",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# No script or style but those in files of this site.
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "connect-src": [CSP.SELF],
    "font-src": [CSP.SELF],
    # Django's admin has small images inside of its style sheets.
    "img-src": [CSP.SELF, "data:"],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
}

ROOT_URLCONF = "demo.urls"
WSGI_APPLICATION = "demo.wsgi.application"
STATIC_URL = "static/"

DEMO_FILE = BASE_DIR / "demo.sqlite3"
DATABASES = {"default": database(os.environ.get("DBTASKS_DATABASE") or sqlite_url(DEMO_FILE))}

TASKS = {
    "default": {
        "BACKEND": "dbtasks.backend.DatabaseBackend",
        "QUEUES": ["default", "demo"],
        "OPTIONS": {"retain": "7d", "task_modules": ["benchmarks.tasks"]},
    },
}

USE_TZ = True
TIME_ZONE = "UTC"

# The runner's own line says which task failed and why; with DEBUG, Django would add a traceback.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django.tasks": {"level": "CRITICAL"}},
}
