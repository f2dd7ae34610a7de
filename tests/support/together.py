"""Threads that begin at once, each with connections of its own."""

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections


def together(workers: int, work: Callable[[int], Any]) -> list[Any]:
    """Run the work in so many threads that start at once; return what each returned."""
    barrier, results = threading.Barrier(workers), [None] * workers

    def run(number: int) -> None:
        try:
            barrier.wait(10)
            results[number] = work(number)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
