"""The demo's tasks: measuring a file, and those that a visitor of the page may start."""

import asyncio
import hashlib
import os
import stat
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from dbtasks import TaskContext, task

# Read at a time: files may be larger than memory.
BLOCK = 1 << 20
# Names are text, except those whose bytes are not UTF-8: a row holds only text.
QUOTED = "quoted:"


def as_text(name: str) -> str:
    """Return the name of a file as text that any database can hold; as_name() turns it back."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return QUOTED + quote_from_bytes(os.fsencode(name))
    return QUOTED + quote_from_bytes(name.encode()) if name.startswith(QUOTED) else name


def as_name(text: str) -> str:
    """Return the name of the file that as_text() made the text of."""
    if text.startswith(QUOTED):
        return os.fsdecode(unquote_to_bytes(text.removeprefix(QUOTED)))
    return text


@task(queue_name="demo")
def measure(name: str, *, folder: str, run: str, files: int) -> dict[str, Any]:
    """Return the file's bytes and SHA-256, and its lines and words if it is text.

    `run` and `files`, the number of files found at first, tell the command which rows belong
    together.
    """
    with open(Path(as_name(folder), as_name(name)), "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{name!r} is no regular file any more.")
        return _measure(iter(partial(file.read, BLOCK), b""))


def _open(path: str, flags: int) -> int:
    # A pipe that took the file's place would keep the thread for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _measure(blocks: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = lines = words = 0
    last, is_text = b"\n", True
    for block in blocks:
        # What git takes for binary: a NUL byte near the start.
        is_text = is_text and not (size == 0 and b"\0" in block[:8192])
        digest.update(block)
        size += len(block)
        if is_text:
            lines += block.count(b"\n")
            # A word that goes on from the block before was counted there.
            words += len(block.split()) - (not last.isspace() and not block[:1].isspace())
            last = block[-1:]
    return {
        "size": size,
        "sha256": digest.hexdigest(),
        "lines": lines + (last != b"\n") if is_text else None,
        "words": words if is_text else None,
    }


# Of the page


@task
def greet(text: str) -> str:
    """Return a greeting: quick."""
    return f"Hello, {text}!"


# Seconds that a nap takes.
NAP = 8.0


@task(takes_context=True, timeout="1m")
def nap(context: TaskContext, text: str) -> str:
    """Sleep a while, in small pieces: slow, but ready to stop when it is cancelled."""
    end = time.monotonic() + NAP
    while time.monotonic() < end:
        context.check()
        time.sleep(0.05)
    return f"{text} slept for {NAP:.0f} s."


@task(max_attempts=3, backoff=[1, 2])
def stumble(text: str) -> None:
    """Fail, each of three times."""
    raise RuntimeError(f"{text} stumbled.")


@task
async def chat(text: str) -> str:
    """Wait for a thousand things at once, on the event loop."""
    await asyncio.gather(*(asyncio.sleep(2) for _ in range(1000)))
    return f"{text} talked to 1,000 others at once."
