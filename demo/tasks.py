"""Tasks of the demo (scratch)."""

from django.tasks import task


@task
def add(a, b):
    return a + b


@task
def boom():
    raise ValueError("x")


@task
async def nap(s):
    import asyncio

    await asyncio.sleep(s)
    return s
