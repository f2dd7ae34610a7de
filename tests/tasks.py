"""Tasks that the tests enqueue."""

import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from django.tasks import TaskContext, task
from django.utils import timezone, translation

import dbtasks

from .support.waiting import until

# What Django's own test cases for tasks call


@task()
def noop_task(*args: Any, **kwargs: Any) -> None:
    return None


@task
def noop_task_from_bare_decorator(*args: Any, **kwargs: Any) -> None:
    return None


@task()
async def noop_task_async(*args: Any, **kwargs: Any) -> None:
    return None


@task()
def calculate_meaning_of_life() -> int:
    return 42


@task()
def failing_task_value_error() -> None:
    raise ValueError("This Task failed due to ValueError")


@task()
def failing_task_system_exit() -> None:
    raise SystemExit("This Task failed due to SystemExit")


@task()
def failing_task_keyboard_interrupt() -> None:
    raise KeyboardInterrupt("This Task failed due to KeyboardInterrupt")


@task()
def complex_exception() -> None:
    raise ValueError(ValueError("This task failed"))


@task()
def complex_return_value() -> Any:
    return lambda: True


@task(takes_context=True)
def get_task_id(context: TaskContext) -> str:
    return context.task_result.id


@task(takes_context=True)
def check_context(context: TaskContext, attempt: int) -> None:
    assert isinstance(context, TaskContext)
    assert context.attempt == attempt


# Ours

# What ran in this process, in order; tests clear it.
ran: list[Any] = []


@task
def add(a: float, b: float) -> float:
    return a + b


@task
def remember(what: Any) -> None:
    ran.append(what)


@task
async def aremember(what: Any) -> None:
    ran.append(what)


@task
def enqueue_other(what: Any, depth: int = 1) -> None:
    """Enqueue the next one, `depth` times over."""
    ran.append(what)
    if depth:
        enqueue_other.enqueue(what, depth - 1)


@task
def remember_on_commit(what: Any) -> None:
    transaction.on_commit(lambda: ran.append(f"{what} on commit"))
    ran.append(what)


@task
def remember_durably(what: Any) -> None:
    with transaction.atomic(durable=True):
        ran.append(what)


@task
def fail(message: str = "no") -> None:
    raise ValueError(message)


@task(takes_context=True)
def fail_once(context: Any) -> None:
    if context.attempt == 1:
        raise ValueError("once")


@task
def fail_on_commit() -> None:
    def fail() -> None:
        raise ValueError("on commit")

    transaction.on_commit(fail)


@task
def interrupt() -> None:
    ran.append("interrupt")
    raise KeyboardInterrupt


@task
def break_sql() -> None:
    connection.cursor().execute("SELECT nothing FROM nowhere")


@task
def enqueue_then_fail() -> None:
    remember.enqueue("enqueued by a failing task")
    raise ValueError("no")


@task
def break_off_inside() -> None:
    """Break off a block that, without a savepoint, takes the one around it along."""
    with transaction.atomic(savepoint=False):
        raise ValueError("broken off")


@task
def leave_open() -> None:
    transaction.atomic().__enter__()


@task
def remember_context() -> None:
    ran.append((translation.get_language(), timezone.get_current_timezone_name()))


@task
def echo(what: Any) -> Any:
    return what


@task
def close_connection() -> None:
    """Leave behind a connection that the server has ended."""
    connection.ensure_connection()
    connection.connection.close()


@task
def set_language() -> None:
    translation.activate("de")
    timezone.activate("Asia/Tokyo")


@task(takes_context=True)
def until_asked(context: Any) -> None:
    """Run until the runner asks the task to end."""
    until(lambda: context.should_stop)
    context.check()


@task
def tell_thread() -> str:
    return threading.current_thread().name


class Gate:
    """Holds tasks of this process in a runner's thread until the test lets them go."""

    opened = threading.Event()
    entered = threading.Event()


@task
def pass_gate() -> None:
    Gate.entered.set()
    if not Gate.opened.wait(20):
        raise TimeoutError("The gate stayed shut.")


@dbtasks.task(enqueue_on_commit=True)
def on_commit_task(what: Any = None) -> None:
    ran.append(what)


@dbtasks.task(enqueue_on_commit="other")
def on_other_commit_task(what: Any = None) -> None:
    ran.append(what)


@dbtasks.task(retain=timedelta(hours=1), priority=7, queue_name="mail")
def short_lived() -> None:
    return None


@task
def write_line(file: str, text: str) -> None:
    """Append a line to the file; processes that do so at once do not mix theirs."""
    with open(file, "a") as lines:
        lines.write(f"{text}\n")


@task
def wait_for_file(folder: str, seconds: float = 30) -> None:
    """Make the file ``started``, then wait until somebody makes ``go``."""
    Path(folder, "started").touch()
    until(Path(folder, "go").exists, "go", seconds)


@task
def die() -> None:
    """End the process, as a crash does."""
    os._exit(1)


@task
def die_among(folder: str, count: int) -> None:
    """End the process once so many of its neighbours have started."""
    until(lambda: len(list(Path(folder).glob("started-*"))) >= count)
    os._exit(1)


@task
def stay(folder: str, name: str) -> str:
    """Make a file ``started-…``, then wait until somebody makes ``go``."""
    Path(folder, f"started-{name}").touch()
    until(Path(folder, "go").exists, "go")
    return name


@task
def rest(seconds: float) -> None:
    time.sleep(seconds)


@task
def halt_loop() -> None:
    """Let the loop of the runner stand still in its next round, for good."""
    from dbtasks.db import timeouts
    from dbtasks.runner import rounds, run

    timeouts.FILE_TIMEOUT = run.CALL_TIMEOUT = 0.5
    rounds.Rounds.round = lambda self: threading.Event().wait()  # type: ignore[method-assign]
