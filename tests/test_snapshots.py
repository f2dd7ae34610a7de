"""Sets and dicts that several threads change are read through atomic copies.

``list(x)`` and ``x.copy()`` hold the container's lock on a free-threaded Python. Everything else
that walks over it raises "changed size during iteration" as soon as another thread changes it.
"""

import ast
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from unittest import TestCase, skipIf

import dbtasks
from dbtasks.wakeup import notify

PACKAGE = Path(dbtasks.__file__).parent

# What makes a container, and how one is annotated.
MAKERS = {"set", "dict", "defaultdict", "Counter", "OrderedDict", "WeakSet", "WeakKeyDictionary"}
VIEWS = {"items", "keys", "values"}
# What walks over its argument. list() does so too, under the argument's lock.
WALKERS = {
    *(all, any, dict, enumerate, filter, frozenset, iter, map, max, min, set, sorted, sum),
    *(tuple, zip, Counter, deque),
}
NAMES = {walker.__name__ for walker in WALKERS}
# Sets and dicts that no other thread changes, each with the reason.
ONE_THREAD = {
    ("liveness.heartbeat", "_sessions"): "only the heartbeat's thread",
    ("processes.reload", "_outdated"): "only the main thread; others write to a socket",
    ("runner.outcome_writer", "_aside"): "only the writer's thread",
    ("runner.scheduler", "_broken"): "only the scheduler's thread",
    ("runner.scheduler", "_making"): "only the scheduler's thread",
    ("testing.assertions", "options"): "never changed after it was made",
}


def is_container(value: ast.expr | None, annotation: ast.expr | None = None) -> bool:
    """Return whether what is assigned is a set or dict, by its annotation or its value."""
    if annotation is not None:
        made = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        return getattr(made, "id", getattr(made, "attr", "")) in MAKERS
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", "") in MAKERS
    return isinstance(value, ast.Dict | ast.Set | ast.DictComp | ast.SetComp)


def containers(tree: ast.Module) -> Iterator[str]:
    """Yield the names of attributes and of variables of the module that are sets or dicts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            if is_container(node.value, node.annotation):
                yield node.target.attr
        elif isinstance(node, ast.Assign) and is_container(node.value):
            yield from (t.attr for t in node.targets if isinstance(t, ast.Attribute))
    for node in tree.body:
        # In capitals: a constant, which is never changed.
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if is_container(node.value, node.annotation) and not node.target.id.isupper():
                yield node.target.id
        elif isinstance(node, ast.Assign) and is_container(node.value):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            yield from (name for name in names if not name.strip("_").isupper())


def walked(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield each expression that is walked over by something other than list()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield node.iter
        elif isinstance(node, ast.Starred | ast.YieldFrom):
            yield node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMES:
            yield from node.args


def locked(tree: ast.AST) -> set[ast.AST]:
    """Return what is in the block of a lock."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(ast.unparse(item.context_expr).endswith("lock") for item in node.items)
        for inner in ast.walk(node)
    }


def variable_names(tree: ast.AST) -> set[str]:
    """Return the names that functions of the module assign: they hide those of the module."""
    return {
        node.id
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def bad_snapshots(source: str, shared: set[str], module: str = "") -> list[str]:
    """Return where the source walks over a set or dict without a copy or a lock.

    Those are the module's own, and attributes of other objects that have one of the `shared` names.
    """
    tree = ast.parse(source)
    own, safe = set(containers(tree)), locked(tree)
    variables = own - variable_names(tree)
    found = []
    for node in walked(tree):
        read = node
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in VIEWS and not node.args:
            read = node.func.value  # type: ignore[attr-defined]
        if isinstance(read, ast.Name):
            name, wanted = read.id, variables
        elif isinstance(read, ast.Attribute):
            name = read.attr
            wanted = own if getattr(read.value, "id", "") == "self" else shared
        else:
            continue
        if name in wanted and node not in safe and (module, name) not in ONE_THREAD:
            found.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    return found


class SnapshotTests(TestCase):
    """The rule, and what it finds."""

    def test_no_module_walks_over_a_shared_container(self):
        """Each one is copied with list() or .copy() first."""
        paths = [p for p in PACKAGE.rglob("*.py") if "migrations" not in p.parts]
        shared = {name for p in paths for name in containers(ast.parse(p.read_text()))}
        found = [
            place
            for path in paths
            for place in bad_snapshots(
                path.read_text(),
                shared,
                ".".join(path.relative_to(PACKAGE).with_suffix("").parts),
            )
        ]

        self.assertLess({"_held", "_unsettled", "_calls", "_missed", "_endings"}, shared)
        self.assertEqual(
            [], found, "Use list(x) or x.copy(), or say here why no other thread changes it."
        )

    def test_the_rule_bites(self):
        """Every way to walk over one is found; the atomic copies are not."""
        head = "calls: dict[int, str] = {}\nclass A:\n    def f(self):\n        self.held = set()\n"
        for line, is_bad in {
            "tuple(self.held)": True,
            "sorted(self.held)": True,
            "[a for a in self.held]": True,
            "any(a for a in other.held)": True,
            "(*self.held, 1)": True,
            "set(self.held)": True,
            "tuple(calls.items())": True,
            "max(calls.values())": True,
            "[*calls]": True,
            "list(self.held)": False,
            "with self.lock: tuple(self.held)": False,
            "self.held.copy()": False,
            "tuple(self.held.copy())": False,
            "list(calls.items())": False,
            "[c for c in calls.copy().items()]": False,
            "len(self.held)": False,
            "1 in self.held": False,
        }.items():
            with self.subTest(line):
                found = bad_snapshots(f"{head}        {line}\n", {"held"})
                self.assertEqual(is_bad, bool(found), found)


class Quiet:
    """Something to wake that does nothing."""

    worker_id = "quiet"

    def wake(self, recheck_after: float = 0.0) -> None:
        """Do nothing."""

    poll_now = wake


class RaceTests(TestCase):
    """What happens while another thread changes the container."""

    def setUp(self) -> None:
        before = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, before)
        sys.setswitchinterval(1e-6)

    def test_runners_may_come_and_go_while_others_are_woken(self):
        """Registering one never breaks an enqueue() in another thread."""
        self.addCleanup(notify._wakeables.pop, "races", None)
        crowd = [Quiet() for _ in range(50)]
        for one in crowd:
            notify.register("races", one)
        stop, rounds = threading.Event(), []

        def come_and_go() -> None:
            while not stop.is_set():
                one = Quiet()
                notify.register("races", one)
                notify.unregister("races", one)
                rounds.append(1)

        thread = threading.Thread(target=come_and_go)
        thread.start()
        try:
            while len(rounds) < 2000:
                notify.became_due("default", "races", only_here=True)
        finally:
            stop.set()
            thread.join()

        self.assertEqual(len(crowd), len(notify._wakeables["races"]))

    @skipIf(getattr(sys, "_is_gil_enabled", lambda: True)(), "the interpreter has a GIL")
    def test_copies_of_sets_and_dicts_are_atomic(self):
        """What the rule relies on, on this interpreter."""
        shared: dict[int, int] = dict.fromkeys(range(100))
        stop = threading.Event()

        def change() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                shared[n % 500] = n
                shared.pop((n * 7) % 500, None)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(3000):
                list(shared.items())
                shared.copy()
                set(shared).copy()
        finally:
            stop.set()
            thread.join()
