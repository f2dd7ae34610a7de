"""Names that were replaced stay away: each thing has one name, the one the field uses."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from django.test import SimpleTestCase

import dbtasks

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(dbtasks.__file__).parent

# Identifiers that the package does not use any more, because each thing has a better name now.
GONE = {
    *("patience", "Within", "prompt", "MOST", "leash", "Leash", "told", "verbs", "Act"),
    *("suspect", "SUSPECT", "Suspect", "claim_suspect", "suspects"),
    *("Heart", "Finisher", "Ticker", "Maintenance", "Job", "Plan", "glance", "look", "Look"),
    *("miss", "again", "_ring", "_bell", "Sleeper", "sleeper", "_likely", "_beyond", "_tick"),
    *("_whole_at", "_hear_at", "_found", "hungry", "eased", "worn_out", "stuck", "write_off"),
    *("TaskAbandoned", "unstarted", "disown", "give_up", "moment", "LEAVES_DEAD", "whereabouts"),
    *("FAREWELL", "HEED", "twin", "_accompany", "QUIET", "SAME", "BREATH", "SOON"),
    *("LoudRunner", "Screen", "plain", "Orders", "alike", "worst", "how", "unique_slot"),
}
# Phrases that readers stumbled over, and what stands in their place.
PHRASES = {
    r"\bis no (?!longer|such)\w+ (line|backoff|path|key|number|duration|schedule|address|port)\b": (
        "is not a valid …"
    ),
    r"\bgiven back\b": "requeued or released",
    r"\bwritten off\b": "abandoned",
    r"\bworn out\b": "exhausted",
    r"\bsuspects?\b": "quarantined",
}
# Where one of these words is the right one.
KEPT = {
    # A further hint about the same row.
    ("push.py", "again"),
    # A moment in time, not a driver's datetime.
    *((f"{name}.py", "moment") for name in ("schedule/rules", "schedule/zones", "admin/render")),
    *((f"{name}.py", "moment") for name in ("models/fields", "testing/assertions")),
    # Attempts that are to be run again.
    ("sweeping.py", "again"),
}


def identifiers(path: Path) -> Iterator[str]:
    """Yield every name that the file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


class NamesTests(SimpleTestCase):
    """In the package, and in what people read."""

    maxDiff = None

    def test_the_old_names_are_gone(self):
        """No function, class, variable or attribute has one of them."""
        found = [
            f"{path.relative_to(PACKAGE)}: {name}"
            for path in sorted(PACKAGE.rglob("*.py"))
            for name in sorted(set(identifiers(path)) & GONE)
            if (str(path.relative_to(PACKAGE)), name) not in KEPT
        ]

        self.assertEqual([], found)

    def test_the_old_phrases_are_gone(self):
        """Neither code nor documentation has a sentence that has to be read twice."""
        pages = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html"), ROOT / "README.md"]
        pages += (ROOT / "docs").glob("*.md")
        found = [
            f"{page.relative_to(ROOT)}:{number}: {phrase} → {better}"
            for page in pages
            for number, line in enumerate(page.read_text().splitlines(), 1)
            for phrase, better in PHRASES.items()
            if re.search(phrase, line)
        ]

        self.assertEqual([], found)

    def test_no_module_is_named_as_an_export(self):
        """``import dbtasks.x`` must not bind a function or a class that is called x."""
        found = []
        for face in sorted(PACKAGE.rglob("__init__.py")):
            names = {
                alias.asname or alias.name
                for node in ast.walk(ast.parse(face.read_text()))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if (node.module or "") != ""
            }
            modules = {path.stem for path in face.parent.glob("*.py")}
            modules |= {path.parent.name for path in face.parent.glob("*/__init__.py")}
            found += [f"{face.parent.name}.{name}" for name in sorted(names & modules)]

        self.assertEqual([], found)
