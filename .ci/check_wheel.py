"""Check the installed wheel: it is complete, needs no more than it declares, and migrates.

Run outside of the source tree, with the path of the source package as the only argument.
"""

import sys
from importlib import import_module
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command

import dbtasks


def files(package: Path) -> set[str]:
    """Return the paths of all files of `package`, without what Python compiled."""
    paths = (path for path in package.rglob("*") if path.is_file())
    return {str(p.relative_to(package)) for p in paths if "__pycache__" not in p.parts}


def main(source: Path) -> None:
    """Exit with a message that names what is wrong with the installed package."""
    installed = Path(dbtasks.__file__).parent
    if installed.resolve() == source.resolve():
        sys.exit(f"{installed} is the source tree - the check must import the wheel.")
    if missing := sorted(files(source) - files(installed)):
        sys.exit(f"The wheel lacks {missing!r}.")
    for pattern in ("py.typed", "migrations/0001_*.py"):
        if not any(installed.glob(pattern)):
            sys.exit(f"The wheel lacks {pattern!r}.")

    settings.configure(
        INSTALLED_APPS=["dbtasks"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}},
        USE_TZ=True,
    )
    django.setup()
    for path in sorted(installed.rglob("*.py")):
        parts = path.relative_to(installed.parent).with_suffix("").parts
        # Only Django imports the admin, and only pytest its plugin. One module needs an extra, and
        # is imported at the first hint.
        if parts[1] not in ("admin", "pytest_plugin") and parts[2:] != ("cloudtasks", "google"):
            import_module(".".join(parts).removesuffix(".__init__"))
    call_command("migrate", verbosity=0)
    call_command("check", databases=["default"])
    print(f"{len(files(installed))} files, installed in {installed}")


main(Path(sys.argv[1]))
