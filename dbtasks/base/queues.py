"""Which queues a runner serves.

Owns how that is written: names, all, or all but some. Never reads which queues there are.
"""

from collections.abc import Iterable

# Stands for all queues in a list of names.
ALL = "*"


class AllBut(frozenset[str]):
    """All queues except those with these names, which may be new ones at any time."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"AllBut({sorted(self)})"


# None is all queues.
Queues = Iterable[str] | AllBut | None
# The same, made from lists.
Served = tuple[str, ...] | AllBut | None


def served(queues: Iterable[str] | None, excluded: Iterable[str]) -> Served:
    """Return the queues that are left of `queues`, or of all, without the excluded ones."""
    excluded = AllBut(excluded)
    if queues is None or ALL in queues:
        return excluded or None
    return tuple(dict.fromkeys(queue for queue in queues if queue not in excluded))
