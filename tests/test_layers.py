"""The walls of the package: who may import whom."""

import ast
from pathlib import Path

from django.test import SimpleTestCase

import dbtasks

PACKAGE = Path(dbtasks.__file__).parent

# A module imports from its own level downward only; __init__ exports levels 0 to 2.
LEVELS = {
    "exceptions": 0,
    "cron": 1,
    "schedule": 1,
    "periodic": 1,
    "payload": 1,
    "policy": 1,
    "indexes": 1,
    "interrupt": 1,
    "inotify": 1,
    "leash": 1,
    "options": 2,
    "registry": 2,
    "task": 2,
    "models": 3,
    "store": 4,
    "execute": 5,
    "backend": 6,
    "wakeup": 5,
    "deadline": 6,
    "loops": 6,
    "liveness": 5,
    "patience": 1,
    "pool": 7,
    "finisher": 7,
    "maintenance": 7,
    "quarantine": 7,
    "ticker": 7,
    "runner": 8,
    "inline": 8,
    "checks": 9,
    "mask": 9,
    "cli": 9,
    "supervisor": 9,
    "reload": 9,
    "report": 9,
    "testing": 9,
    "apps": 9,
    "management": 10,
    "admin": 10,
    "contrib": 10,
}


def imports(path: Path) -> set[str]:
    """Return the top modules of dbtasks that the file imports, TYPE_CHECKING aside."""
    found = set()
    inside = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body.clear()
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(inside[: len(inside) - node.level])
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(base + name.split("."))[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dbtasks."):
            found.add(node.module.split(".")[1])
    return found


class LayersTests(SimpleTestCase):
    """Imports go strictly downward."""

    def test_every_module_has_a_level(self):
        """A new module is given its place before it is used."""
        names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}

        self.assertEqual(set(), names - LEVELS.keys())

    def test_imports_go_downward(self):
        """No module imports one of a higher level, nor another door."""
        wrong = []
        for path in PACKAGE.rglob("*.py"):
            own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
            if own in ("__init__", "migrations"):
                continue
            wrong += [
                f"{own} imports {name}"
                for name in imports(path)
                if LEVELS.get(name, -1) > LEVELS[own]
            ]

        self.assertEqual([], wrong)

    def test_every_module_says_what_it_owns_and_never_does(self):
        """Each module's docstring names its duty and its limit."""
        silent = []
        for path in PACKAGE.rglob("*.py"):
            if "migrations" in path.parts or "management" in path.parts:
                continue
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            if not ("Owns" in text and ("Never" in text or "never" in text)):
                silent.append(path.name)

        self.assertEqual([], silent)

    def test_only_store_writes_rows(self):
        """No other module changes a row."""
        writers = [
            path.name
            for path in PACKAGE.rglob("*.py")
            if not {"store", "migrations"} & set(path.parts) and writes(path)
        ]

        self.assertEqual([], writers)


def writes(path: Path) -> bool:
    """Tell whether the file calls what changes rows; a dict's update() takes no keywords."""
    names = {"update", "save", "delete", "create", "bulk_create", "bulk_update", "_raw_delete"}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in names
        and not call.args
        and getattr(call.func.value, "id", "") != "store"
        for call in calls
    )
