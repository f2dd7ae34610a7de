"""Makes this process look like macOS to dbtasks, before anything else is imported.

A process that has this folder on PYTHONPATH runs it at its start.
"""

# These choose their parts by the platform when they are imported, so they come first.
import asyncio  # noqa: F401
import ctypes
import multiprocessing.util  # noqa: F401
import os
import platform  # noqa: F401
import select
import selectors
import subprocess  # noqa: F401
import sys
import sysconfig
import tempfile  # noqa: F401
import time
import urllib.request  # noqa: F401
import uuid  # noqa: F401
import webbrowser  # noqa: F401
from typing import Any

BOOT = b"9A1E6B4C-0D5F-4E7A-8B7E-2F3C6D9A1B52"


class Library:
    """What dbtasks may call of the process's own library."""

    def sysctlbyname(self, name: bytes, text: Any, size: Any, new: None, length: int) -> int:
        """Answer as macOS does for what it calls this start of the machine."""
        if name != b"kern.bootsessionuuid":
            return -1
        text.value = BOOT
        return 0


def load(name: Any, *args: Any, **kwargs: Any) -> Any:
    """Load a library."""
    return Library() if name is None else library(name, *args, **kwargs)


def no_proc(event: str, args: tuple[Any, ...]) -> None:
    """Refuse to open what only Linux has."""
    if event == "open" and str(args[0]).startswith("/proc/"):
        raise FileNotFoundError(args[0])


# Read once; on macOS it would ask the compiler.
sysconfig.get_config_vars()
selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc]
for module, names in {
    select: "epoll",
    selectors: "EpollSelector",
    time: "CLOCK_BOOTTIME",
    os: "eventfd memfd_create pipe2 sched_getaffinity",
}.items():
    for missing in names.split():
        delattr(module, missing)
sys.platform = "darwin"
library = ctypes.CDLL
ctypes.CDLL = load  # type: ignore[assignment,misc]
sys.addaudithook(no_proc)
