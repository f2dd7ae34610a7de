"""The walls of the package: who may import whom, how large a room may be, which names are gone."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from django.test import SimpleTestCase

import dbtasks

from .support.levels import LEVELS
from .support.projects import SETTINGS, run_in_project

PACKAGE = Path(dbtasks.__file__).parent

# What users import from dbtasks itself can be had before Django has loaded its apps.
FACE = 2

BEFORE_APPS = "tasks, and with them their backend, are imported before apps are ready"
# Imports inside of functions, each with its reason.
LAZY = {
    ("__init__", "inline"): "what runs tasks needs the models",
    ("__init__", "sweeping"): "what runs tasks needs the models",
    ("__init__", "distribution"): "few ask for the version",
    ("apps", "checks"): "models cannot be imported before their app is ready",
    ("apps", "inline"): "models cannot be imported before their app is ready",
    **{
        ("backend", name): BEFORE_APPS
        for name in (
            "calls",
            "execution.attempt",
            "immediate",
            "liveness.identity",
            "models",
            "operations",
            "store",
            "wakeup",
        )
    },
    **{
        (f"contrib.{name}", "contrib.embedded"): "the server loads Django's apps first"
        for name in ("asgi", "gunicorn", "mule")
    },
    ("contrib.http.mount", "contrib.http.views"): "settings import Bearer before apps are loaded",
    ("pytest_plugin", "testing"): "pytest loads plugins before Django is configured",
    ("pytest_plugin", "testing.runner"): "pytest loads plugins before Django is configured",
    ("contrib.aws", "contrib.aws.function"): "it sets Django up first; SQS is made in settings",
    **{
        (f"contrib.cloudtasks.{name}", "contrib.cloudtasks.google"): "google-auth may be missing"
        for name in ("push", "oidc")
    },
    ("contrib.mule", "processes.run"): "the mule loads Django's apps first",
    ("contrib.serve.management.commands.serve", "contrib.serve.watch"): "only with --reload",
}


class Import(NamedTuple):
    """One import of something in the package, as dotted names below it."""

    importer: str
    target: str
    is_lazy: bool


def name_of(path: Path, package: Path) -> str:
    """Return the module's name below the package; "__init__" for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "__init__"


def imports(path: Path, package: Path) -> Iterator[Import]:
    """Yield what the file imports of the package, whatever way it is written."""
    own = name_of(path, package)
    here = path.parent.relative_to(package).parts
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    lazy = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        for target in targets(node, here, package):
            yield Import(own, target, node in lazy)


def targets(node: ast.AST, here: tuple[str, ...], package: Path) -> Iterator[str]:
    """Yield the modules of the package that the statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == package.name:
                yield alias.name.partition(".")[2] or "__init__"
    if not isinstance(node, ast.ImportFrom):
        return
    if node.level:
        parts = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
    elif (node.module or "").partition(".")[0] == package.name:
        parts = (node.module or "").split(".")[1:]
    else:
        return
    base = [part for part in parts if part]
    for alias in node.names:
        inner = package.joinpath(*base, alias.name)
        is_module = inner.with_suffix(".py").exists() or inner.is_dir()
        yield ".".join([*base, alias.name] if is_module else base) or "__init__"


def order(package: Path, folder: str) -> list[str]:
    """Return the modules of a package inside of ours, in the order that its docstring gives."""
    text = ast.get_docstring(ast.parse((package / folder / "__init__.py").read_text())) or ""
    listed = re.search(r"Read in this order: ([\w,\s]+)\.", text)
    return re.split(r",\s+", listed[1]) if listed else []


def faults(
    package: Path, levels: dict[str, int], lazy: dict[tuple[str, str], str] | None = None
) -> list[str]:
    """Return a sentence for each import that goes through a wall."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for each in imports(path, package):
            if each.is_lazy and lazy is not None and each[:2] not in lazy:
                found.append(f"{each.importer} imports {each.target} in a function")
            found += wall(package, each, levels)
    return found


def wall(package: Path, each: Import, levels: dict[str, int]) -> Iterator[str]:
    """Yield a sentence if the import does not go downward."""
    own, target = each.importer.split("."), each.target.split(".")
    if own[0] == "__init__":
        if not each.is_lazy and levels[target[0]] > FACE:
            yield f"the package itself imports {each.target}"
        return
    if target[0] == "__init__":
        yield f"{each.importer} imports the package itself"
    elif own[0] != target[0]:
        if levels[target[0]] >= levels[own[0]]:
            yield f"{each.importer} imports {each.target}, which is not below it"
    else:
        yield from inner_wall(package, each, own, target)


def inner_wall(package: Path, each: Import, own: list[str], target: list[str]) -> Iterator[str]:
    """Yield a sentence if the import inside of one package goes upward."""
    if len(target) > len(own) and target[: len(own)] == own:
        # The __init__ of a package inside of a package is a face as well.
        return
    depth = 1
    while own[depth : depth + 1] == target[depth : depth + 1] and len(own) > depth + 1:
        depth += 1
    if len(own) == depth:
        # The package's own __init__ is its face.
        return
    if len(target) == depth:
        yield f"{each.importer} imports the face of its own package"
        return
    modules = order(package, "/".join(own[:depth]))
    above, below = own[depth], target[depth]
    if above not in modules or below not in modules:
        yield f"{each.importer} or {each.target} is not in the order of its package"
    elif modules.index(below) >= modules.index(above):
        yield f"{each.importer} imports {each.target}, which is not listed before it"


class WallTests(SimpleTestCase):
    """Imports go strictly downward."""

    def test_every_module_has_a_level(self):
        """A new module is given its place before it is used."""
        names = {path.stem for path in PACKAGE.glob("*.py")} | {
            path.parent.name for path in PACKAGE.glob("*/__init__.py")
        }

        self.assertEqual(set(), names - LEVELS.keys() - {"__init__", PACKAGE.name})

    maxDiff = None

    def test_imports_go_strictly_downward(self):
        """No module imports one of its own level or a higher one, in whatever way."""
        self.assertEqual([], faults(PACKAGE, LEVELS, LAZY))

    def test_every_lazy_import_on_the_list_is_there(self):
        """The list has no entry that nobody needs."""
        found = {each[:2] for path in PACKAGE.rglob("*.py") for each in imports(path, PACKAGE)}

        self.assertEqual(set(), LAZY.keys() - found)

    def test_every_package_lists_its_modules(self):
        """Each __init__ says in which order its files are read, all of them."""
        for path in PACKAGE.rglob("__init__.py"):
            folder = path.parent.relative_to(PACKAGE)
            there = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
            there |= {p.parent.name for p in path.parent.glob("*/__init__.py")}
            if folder == Path() or "migrations" in folder.parts or len(there) < 2:
                continue
            with self.subTest(str(folder)):
                self.assertEqual(sorted(there), sorted(order(PACKAGE, str(folder))))

    def test_every_module_says_what_it_owns_and_never_does(self):
        """Each module's docstring names its duty and its limit."""
        silent = []
        for path in PACKAGE.rglob("*.py"):
            if "migrations" in path.parts or "management" in path.parts:
                continue
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            if not ("Owns" in text and "Never" in text):
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

    def test_nothing_is_asserted_away(self):
        """The package has no assert: what cannot be is not written down as if it could."""
        found = [
            f"{path.relative_to(PACKAGE)}:{node.lineno}"
            for path in PACKAGE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Assert)
        ]

        self.assertEqual([], found)


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


def borrowed(tests: Path) -> list[str]:
    """Return a sentence for each import of a test module by another module."""
    found = set()
    for path in sorted(tests.rglob("*.py")):
        for each in imports(path, tests):
            *folders, module = each.target.split(".")
            if module.startswith("test_") and tests.joinpath(*folders, f"{module}.py").exists():
                found.add(f"{each.importer} imports {each.target}")
    return sorted(found)


class TestsOfTestsTests(SimpleTestCase):
    """What tests share is in tests/support."""

    def test_no_test_module_is_imported(self):
        """A test module can be moved, renamed or deleted without a look at any other."""
        self.assertEqual([], borrowed(Path(__file__).parent))

    def test_an_import_of_a_test_module_is_found(self):
        """However it is written, also inside of a function."""
        tests = Path(self.enterContext(tempfile.TemporaryDirectory()), "tests")
        tests.joinpath("store").mkdir(parents=True)
        for name in ("test_face.py", "support.py", "store/test_rows.py"):
            tests.joinpath(name).touch()
        for text in (
            "from .test_rows import x",
            "from . import test_rows",
            "from ..store.test_rows import x",
            "from tests.store.test_rows import x",
            "import tests.store.test_rows",
            "def later():\n    from .test_rows import x",
        ):
            with self.subTest(text):
                tests.joinpath("store/test_other.py").write_text(text)
                self.assertEqual(["store.test_other imports store.test_rows"], borrowed(tests))
        tests.joinpath("store/test_other.py").write_text("from ..support import test_x")

        self.assertEqual([], borrowed(tests))


class WallsBiteTests(SimpleTestCase):
    """Each way through a wall is seen, in a package made for it."""

    LEVELS = {"low": 0, "mid": 1, "twin": 1, "high": 2}

    def package(self, **texts: str) -> Path:
        """Return a package of that many modules; "folder__name" is a module in a folder."""
        package = Path(self.enterContext(tempfile.TemporaryDirectory()), "house")
        files = {"__init__": "", "low": "", "mid__b": "", "mid__a": "", "high": "", "twin": ""}
        files |= {"mid____init__": '"""Read in this order: a, b."""'}
        for name, text in (files | texts).items():
            folder, _, module = name.partition("__") if name != "__init__" else ("", "", name)
            path = package / folder / f"{module}.py" if module else package / f"{folder}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return package

    def assert_fault(self, sentence: str, **texts: str) -> None:
        self.assertEqual([sentence], faults(self.package(**texts), self.LEVELS, {}))

    def test_imports_downward_are_no_fault(self):
        """From a higher level, and from what is listed before."""
        texts = {"high": "from .mid.a import x\nimport house.low", "mid__b": "from .a import x"}

        self.assertEqual([], faults(self.package(**texts), self.LEVELS, {}))

    def test_a_relative_import_upward(self):
        """from . import high"""
        self.assert_fault("low imports high, which is not below it", low="from . import high")

    def test_an_absolute_import_upward(self):
        """from house import high; from house.high import x"""
        for text in ("from house import high", "from house.high import x"):
            self.assert_fault("low imports high, which is not below it", low=text)

    def test_an_import_statement_upward(self):
        """import house.high"""
        self.assert_fault("low imports high, which is not below it", low="import house.high")

    def test_an_import_within_one_level(self):
        """Two rooms of one floor."""
        self.assert_fault("twin imports mid.a, which is not below it", twin="from .mid.a import x")

    def test_an_import_of_the_package_itself(self):
        """import house; from house import name"""
        for text in ("import house", "from house import name"):
            self.assert_fault("high imports the package itself", high=text)

    def test_a_circle_inside_one_package(self):
        """What is listed later may import what is listed before, not the other way round."""
        self.assert_fault(
            "mid.a imports mid.b, which is not listed before it",
            mid__a="from .b import x",
            mid__b="from . import a",
        )

    def test_a_module_that_its_package_does_not_list(self):
        """Its place must be named first."""
        self.assert_fault(
            "mid.c or mid.a is not in the order of its package", mid__c="from .a import x"
        )

    def test_the_face_of_its_own_package(self):
        """It imports all of its modules."""
        self.assert_fault("mid.b imports the face of its own package", mid__b="from . import x")

    def test_the_face_of_a_package_inside_imports_its_modules(self):
        """As the face of the outer package does."""
        texts = {"mid____init__": '"""Read in this order: c, a, b."""', "mid__c/__init__": ""}
        package = self.package(**texts)
        package.joinpath("mid/c/__init__.py").write_text("from .inner import x")
        package.joinpath("mid/c/inner.py").touch()

        self.assertEqual([], faults(package, self.LEVELS, {}))

    def test_a_lazy_import_that_is_not_on_the_list(self):
        """Downward or not."""
        text = "def later():\n    from .low import x"
        self.assert_fault("high imports low in a function", high=text)

    def test_what_only_type_checkers_read_is_no_fault(self):
        """It is never imported."""
        text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .high import x"

        self.assertEqual([], faults(self.package(low=text), self.LEVELS, {}))


class ClientLibraryTests(SimpleTestCase):
    """Nobody pays for a service that they do not use."""

    SERVICES = ("contrib.aws", "contrib.cloudtasks", "contrib.http", "contrib.redis")
    # Settings make objects of what is in these, while no app is loaded.
    IN_SETTINGS = ("push", "waker", *SERVICES)
    SAY = """
import sys
libraries = {"boto3", "botocore", "google", "redis", "requests"}
print(*sorted(libraries & {name.partition(".")[0] for name in sys.modules}))
"""

    def test_the_package_imports_no_client_library(self):
        """Not one of its modules does, whether it is used or not."""
        # These need a server that is not installed, or that imports them itself.
        servers = r"migrations|pytest_plugin|contrib\.(mule|serve|cloudtasks\.google)"
        names = sorted(name_of(path, PACKAGE) for path in PACKAGE.rglob("*.py"))
        modules = [name for name in names if name[0] != "_" and not re.match(servers, name)]
        code = f"""
import django, importlib
django.setup()
for name in {modules}:
    importlib.import_module(f"dbtasks.{{name}}")
"""
        environment = {"DJANGO_SETTINGS_MODULE": "tests.settings"}
        done = subprocess.run(
            [sys.executable, "-c", code + self.SAY],
            cwd=PACKAGE.parent,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

        self.assertGreater(len(modules), 100)
        self.assertEqual(("", ""), (done.stderr, done.stdout.strip()))

    def test_what_settings_import_needs_no_apps(self):
        """Services are made there, and their libraries are imported by the first hint."""
        lines = [
            f"import dbtasks.{name}" for name in self.IN_SETTINGS if find_spec(f"dbtasks.{name}")
        ]
        settings = "\n".join([SETTINGS, *lines])
        done = run_in_project(
            {"../settings.py": settings}, "-c", "import django\ndjango.setup()" + self.SAY
        )

        self.assertEqual(("", ""), (done.stderr, done.stdout.strip()))


class SizeTests(SimpleTestCase):
    """No room grows so large that nobody sees all of it."""

    def test_functions_and_classes_are_small(self):
        """A function has at most 40 lines, a class about 250, a file about 300."""
        large = []
        for path in PACKAGE.rglob("*.py"):
            if "migrations" in path.parts:
                continue
            name, text = path.relative_to(PACKAGE), path.read_text()
            if len(text.splitlines()) > 370:
                large.append(str(name))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    most = 40
                elif isinstance(node, ast.ClassDef):
                    most = 275
                else:
                    continue
                if (node.end_lineno or 0) - node.lineno + 1 > most:
                    large.append(f"{name}: {node.name}")

        self.assertEqual([], large)
