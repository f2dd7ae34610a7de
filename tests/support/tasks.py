"""Tasks that misbehave, and some that count on a clean thread."""

import asyncio
import select
import sys
import threading
import time
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from weakref import WeakSet

from django.db import (
    DatabaseError,
    IntegrityError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.tasks import task
from django.utils import timezone, translation

import dbtasks
from dbtasks.models import ScheduledTask

NOT_JSON = (
    "nan",
    "nul",
    "surrogate",
    "datetime",
    "set",
    "deep",
    "circle",
    "large",
    "integer",
    "keys",
)
RAISED = (
    "exit",
    "unspeakable",
    "bare",
    "interrupt",
    "generator",
    "memory",
    "nul",
    "large",
    "group",
    "cancelled",
    "recursion",
)


@task
def add(a: int, b: int) -> int:
    return a + b


remembered: list[int] = []


@task
def remember(n: int) -> None:
    """Note, in this process, that the task ran."""
    remembered.append(n)


class Load:
    """Something that a task has in hand; counts how many there are."""

    all: WeakSet["Load"] = WeakSet()

    def __init__(self) -> None:
        self.all.add(self)


@task
def carry(fails: bool) -> None:
    """Have a load in hand, and fail with it if told to."""
    load = Load()  # noqa: F841
    if fails:
        raise ValueError("too heavy")


@task
async def acarry(fails: bool) -> None:
    """See carry()."""
    carry.func(fails)


class Crowd:
    """Counts the tasks of this process that run."""

    now, lock = 0, threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            Crowd.now += 1

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            Crowd.now -= 1


@task
def go_on() -> None:
    """Enqueue the next one of a chain that only the gate ends."""
    with Crowd():
        time.sleep(0.01)
        if not Gate.opened.is_set():
            go_on.enqueue()


@task
def count_crowd() -> int:
    """Return the most tasks seen to run at once."""
    most = 0
    with Crowd():
        for _ in range(20):
            most = max(most, Crowd.now)
            time.sleep(0.005)
    return most


@task
def give(what: str) -> Any:
    """Return something that JSON cannot hold."""
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    return {
        "nan": float("nan"),
        "nul": "a\0b",
        "surrogate": "\ud800",
        "datetime": datetime(2026, 1, 1),
        "set": {1},
        "deep": deep,
        "circle": circle,
        "large": "x" * 300_000,
        "integer": 10**5000,
        "keys": {1: "a", "1": "b"},
    }[what]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Bare(BaseException):
    pass


@task
def throw(what: str) -> None:
    """Raise something unusual."""
    if what == "exit":
        sys.exit(1)
    if what == "recursion":
        throw.func(what)
    raise {
        "unspeakable": Unspeakable(),
        "bare": Bare("bare"),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "memory": MemoryError(),
        "nul": ValueError("a\0b\ud800c"),
        "large": ValueError("x" * 1_000_000),
        "group": ExceptionGroup("many", [ValueError(1), TypeError(2)]),
        "cancelled": asyncio.CancelledError(),
    }[what]


@task
async def athrow(what: str) -> None:
    throw.func(what)


@task
def leave_transaction_open() -> str:
    transaction.atomic().__enter__()
    ScheduledTask.objects.create(
        id="00000000-0000-7000-8000-000000000000",
        task_path="left.open",
        backend="nobody",
        queue_name="default",
        priority=0,
        args=[],
        kwargs={},
        status="READY",
        hold="",
        enqueued_at=timezone.now(),
    )
    return threading.current_thread().name


@task
def leave_autocommit_off() -> None:
    transaction.set_autocommit(False)
    connection.cursor().execute("SELECT 1")


@task
def leave_locale() -> None:
    timezone.activate("Asia/Tokyo")
    translation.activate("ja")


# Set by a caller, whose tasks may see it or not.
secret: ContextVar[str] = ContextVar("secret", default="unset")


@task
def tell_secret() -> str:
    return secret.get()


@task
async def atell_secret() -> str:
    return secret.get()


@task
def look_around() -> list[Any]:
    """Tell what the thread looks like to a task."""
    return [
        timezone.get_current_timezone_name(),
        translation.get_language(),
        connection.in_atomic_block,
        connection.get_autocommit(),
    ]


@task
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@task
async def meet(count: int) -> None:
    """Wait until so many of these run at once on this loop."""
    waiting = _meetings.setdefault(asyncio.get_running_loop(), [])
    waiting.append(future := asyncio.get_running_loop().create_future())
    if len(waiting) >= count:
        for other in waiting:
            other.set_result(None)
    await asyncio.wait_for(future, 15)


_meetings: dict[Any, list[Any]] = {}


@task
async def count_rows() -> list[Any]:
    """Use the ORM from a coroutine; tell in which thread that was."""
    from asgiref.sync import sync_to_async

    name = await sync_to_async(lambda: threading.current_thread().name)()
    return [await ScheduledTask.objects.acount() > 0, name, threading.current_thread().name]


@task(takes_context=True)
def tell_context(context: Any) -> list[Any]:
    result = context.task_result
    return [context.attempt, result.id, str(result.status), result.worker_ids]


@task
def connection_id() -> Any:
    """Tell which connection this thread has."""
    sql = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
    with connection.cursor() as cursor:
        cursor.execute(sql.get(connection.vendor, "SELECT 1"))
        number = cursor.fetchone()[0]
    return id(connection.connection) if connection.vendor == "sqlite" else number


@task
def thread_name() -> str:
    return threading.current_thread().name


class Gate:
    """Holds tasks of this process until the test lets them go."""

    opened = threading.Event()
    entered = threading.Semaphore(0)
    # What a task waits at that hangs in a call into C.
    pipe = (-1, -1)


@task
def wait_at_gate() -> None:
    Gate.entered.release()
    if not Gate.opened.wait(30):
        raise TimeoutError


@task
async def await_gate() -> None:
    """Wait for the gate without blocking the loop."""
    while not Gate.opened.is_set():
        await asyncio.sleep(0.01)


@task
def pause(seconds: float) -> None:
    time.sleep(seconds)


not_a_task = throw.func


@task(takes_context=True)
def fail_times(context: Any, times: int) -> None:
    """Fail in so many attempts, then succeed."""
    remembered.append(context.attempt)
    if context.attempt <= times:
        raise ValueError(context.attempt)


@dbtasks.task(max_attempts=3, backoff=0.01, retry_on=ValueError, discard_on=[UnicodeError])
def picky(what: str) -> None:
    raise {"value": ValueError, "key": KeyError, "unicode": UnicodeError}[what]


def tell(error: BaseException, result: Any) -> float | None:
    """Decide by what the task was given, and by how often it was tried."""
    assert isinstance(error, ValueError)
    assert result.attempts >= 1
    return {"again": 0.01, "stop": None, "broken": "nonsense"}[result.args[0]]  # type: ignore[return-value]


@dbtasks.task(max_attempts=3, backoff=tell)
def told(what: str) -> None:
    raise ValueError(what)


@task(takes_context=True)
def ask(context: Any, what: str) -> None:
    """End as a task may ask to."""
    if what == "snooze" and context.attempt < 3:
        raise dbtasks.Snooze(0.01)
    if what == "retry":
        raise dbtasks.Retry(delay=0.01)
    if what == "discard":
        raise dbtasks.Discard("no use")


@task
async def exit_in_a_child() -> None:
    """Let a child of the coroutine call sys.exit()."""

    async def child() -> None:
        sys.exit(3)

    await asyncio.gather(child())


@task
def give_much(size: int) -> str:
    return "x" * size


@task
def swallow() -> str:
    """Go on after an error of the database, as if nothing had been."""
    first = ScheduledTask.objects.first()
    try:
        ScheduledTask.objects.bulk_create([first])
    except IntegrityError:
        return "swallowed"
    return "nothing to swallow"


@task
def break_other() -> None:
    """Fail on another database than the queue's."""
    with connections["other"].cursor() as cursor:
        cursor.execute("SELECT nonsense FROM nowhere")


# Tasks that take too long, in all ways


@task
def spin() -> None:
    """Run Python code for ever."""
    Gate.entered.release()
    while True:
        pass


@task
def spin_on() -> None:
    """Run Python code for ever, whatever Exception comes."""
    Gate.entered.release()
    while True:
        try:
            while True:
                pass
        except Exception:
            remembered.append(0)


@task
def spin_in_transaction() -> None:
    """Use the database for ever, in a transaction that is never left."""
    leave_transaction_open.func()
    while True:
        ScheduledTask.objects.count()


@task
def hang() -> None:
    """Be in a call that no signal of ours reaches, until the test opens the gate; then go on."""
    Gate.entered.release()
    # One call into C, which runs no Python code, until the other end of the pipe is closed.
    select.select([Gate.pipe[0]], [], [], 60)
    remembered.append(1)


@task
def refuse() -> None:
    """Swallow what should end it, and go on until the gate opens."""
    Gate.entered.release()
    while not Gate.opened.is_set():
        try:
            time.sleep(0.01)
        except BaseException:
            remembered.append(2)


@dbtasks.task(takes_context=True)
def heed(context: dbtasks.TaskContext) -> str:
    """Return as soon as it should stop."""
    Gate.entered.release()
    while not context.should_stop:
        time.sleep(0.01)
    return "stopped"


@dbtasks.task(takes_context=True)
def obey(context: dbtasks.TaskContext) -> None:
    """Let itself be stopped."""
    Gate.entered.release()
    while True:
        context.check()
        time.sleep(0.01)


@dbtasks.task(takes_context=True)
def snooze_in_time(context: dbtasks.TaskContext) -> str:
    """Put the rest off when the time is over."""
    if context.attempt > 1:
        return "the rest"
    while not context.should_stop:
        time.sleep(0.01)
    raise dbtasks.Snooze(0)


@dbtasks.task(takes_context=True)
async def aheed(context: dbtasks.TaskContext) -> str:
    while not context.should_stop:
        await asyncio.sleep(0.01)
    return "stopped"


@task
async def anap() -> None:
    """Sleep for longer than anybody waits."""
    Gate.entered.release()
    try:
        await asyncio.sleep(60)
    finally:
        remembered.append(3)


@task
async def arefuse() -> None:
    """Swallow the cancellation, and go on until the gate opens."""
    Gate.entered.release()
    while not Gate.opened.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            remembered.append(4)


@task
async def ablock() -> None:
    """Keep the loop from coming round."""
    hang.func()


@dbtasks.task(timeout="0.2s", max_attempts=2, backoff=0)
def decorated() -> None:
    spin.func()


@dbtasks.task(timeout=0.004)
def end_about_now(seconds: float) -> float:
    """Run Python code for that long: about as long as it may."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


@task
def stay_unharmed(rounds: int) -> int:
    """Do nothing that could take too long, in code that an exception would show in."""
    return sum(1 for _ in range(rounds))


@task
def sleep(seconds: float) -> None:
    """Be in one call into C for so long."""
    time.sleep(seconds)


@task
def fail_at_gate() -> None:
    wait_at_gate.func()
    raise ValueError("after the gate")


@task
def snooze_at_gate() -> None:
    wait_at_gate.func()
    raise dbtasks.Snooze(0)


@dbtasks.task(takes_context=True)
def snooze_when_asked(context: dbtasks.TaskContext) -> None:
    """Put off what is not wanted any more."""
    Gate.entered.release()
    while not context.should_stop:
        time.sleep(0.01)
    raise dbtasks.Snooze(0)


@dbtasks.task(takes_context=True)
def cancel_itself(context: dbtasks.TaskContext) -> None:
    """Be cancelled while running, and want to run again."""
    assert context.task_result.cancel()
    raise dbtasks.Snooze(0)


@task(takes_context=True)
def tell_tick(context: Any) -> str | None:
    """Tell when the run was due."""
    return None if context.tick is None else str(context.tick.isoformat())


@dbtasks.task(takes_context=True)
def give_meta(context: dbtasks.TaskContext) -> Any:
    """Return what was attached to the call."""
    return context.task_result.task.meta


@task
def make_light_of_it() -> str:
    """Swallow the interrupt, and return as if nothing had been."""
    Gate.entered.release()
    try:
        while True:
            pass
    except BaseException:
        return "done"


@task
async def amake_light_of_it() -> str:
    """See make_light_of_it()."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "done"
    return "slept"


@task
def turn_into_another() -> None:
    """Raise another exception when interrupted."""
    try:
        while True:
            pass
    except BaseException:
        raise ProgrammingError("the connection is closed")  # noqa: B904


@task
async def aturn_into_another() -> None:
    """See turn_into_another()."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ProgrammingError("the connection is closed")  # noqa: B904


@task
def raise_from() -> None:
    """Raise one exception because of another."""
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second") from error


# Statements that take longer than anybody waits.
LONG_SQL = {
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT SLEEP(60)",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
    "SELECT max(n) FROM c",
}


@task
def wait_in_sql() -> None:
    """Wait in one statement."""
    with connection.cursor() as cursor:
        Gate.entered.release()
        cursor.execute(LONG_SQL[connection.vendor])


@task
def wait_in_sql_and_swallow() -> str:
    """See wait_in_sql(); go on after the error."""
    try:
        wait_in_sql.func()
    except Exception:
        remembered.append(5)
    return "went on"


@task
async def await_in_sql() -> None:
    """See wait_in_sql()."""
    from asgiref.sync import sync_to_async

    await sync_to_async(wait_in_sql.func)()


@task
def leave_marks() -> None:
    """Leave a table in the session, and an attribute on Django's connection."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE marks (n integer)")
    connection.tenant = "acme"  # type: ignore[attr-defined]


@task
def see_marks() -> list[bool]:
    """Tell whether these are there."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM marks")
            found = True
    except DatabaseError:
        found = False
    return [found, hasattr(connection, "tenant")]


@task
def wait_for_child(depth: int, queue: str = "default", timeout: float | None = 20) -> int:
    """Enqueue the next one, wait for it, and return how many there were."""
    if depth == 0:
        return 0
    child = wait_for_child.using(queue_name=queue).enqueue(depth - 1)
    return int(child.wait(timeout).return_value) + 1


@task
async def await_child(depth: int) -> int:
    """See wait_for_child()."""
    if depth == 0:
        return 0
    child = await await_child.aenqueue(depth - 1)
    return int((await child.await_(20)).return_value) + 1
