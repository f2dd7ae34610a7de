"""Tasks of a module that test processes do not import: only a process that enqueues one does."""

import dbtasks


@dbtasks.task(on_lost="fail")
def once() -> None:
    pass


@dbtasks.task(retain="3h")
def brief() -> None:
    pass


@dbtasks.task(on_lost="fail", retain="3h")
def once_brief() -> None:
    pass


@dbtasks.task
def plain() -> None:
    pass
