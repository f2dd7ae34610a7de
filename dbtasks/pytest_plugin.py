"""Fixtures for pytest, which finds them by an entry point. They need pytest-django.

Owns ``run_dbtasks`` and ``dbtasks_runner``. Never imports models before a test asks for a fixture,
because pytest loads plugins before pytest-django has configured Django.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import Ran, TestingRunner


@pytest.fixture
def run_dbtasks(db: None) -> "Callable[..., Ran]":
    """Return run_tasks(), which runs due tasks in the test's thread and transaction."""
    from .testing import run_tasks

    return run_tasks


@pytest.fixture
def dbtasks_runner(
    request: pytest.FixtureRequest, transactional_db: None
) -> "Iterator[TestingRunner]":
    """Yield a runner that runs beside the test, in threads of its own.

    ``@pytest.mark.dbtasks_runner(workers=4)`` sets its options, which are the attributes of
    RunnerTestCase.
    """
    from .testing.runner import RunnerTestCase, TestingRunner, runner_options, shared_memory

    marker = request.node.get_closest_marker("dbtasks_runner")
    options: dict[str, Any] = runner_options(RunnerTestCase)
    if marker is not None:
        options |= marker.kwargs
    with shared_memory():
        runner = TestingRunner(**options)
        runner.start()
        yield runner
        runner.close()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "dbtasks_runner(**options): options of the dbtasks_runner fixture."
    )
