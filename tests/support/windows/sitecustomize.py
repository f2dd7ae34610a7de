"""Takes from this process what Python does not have on Windows, before anything else is imported.

A process that has this folder on PYTHONPATH runs it at its start.
"""

# These choose their parts by the platform when they are imported, so they come first.
import asyncio  # noqa: F401
import ctypes
import ctypes.util
import faulthandler
import logging.handlers  # noqa: F401
import multiprocessing.connection
import os
import platform  # noqa: F401
import select
import selectors
import shutil  # noqa: F401
import signal
import subprocess  # noqa: F401
import sys
import sysconfig
import tempfile  # noqa: F401
import time
import uuid  # noqa: F401
import webbrowser  # noqa: F401
from typing import Any

MISSING = {
    signal: (
        "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 "
        "SIG_BLOCK SIG_SETMASK SIG_UNBLOCK alarm getitimer pause pthread_kill pthread_sigmask "
        "setitimer siginterrupt sigpending sigwait"
    ),
    os: (
        "O_CLOEXEC O_NOFOLLOW O_NONBLOCK chown fork forkpty getegid geteuid getgid getpgid getuid "
        "killpg mkfifo nice register_at_fork sched_getaffinity setpgid setsid statvfs wait waitid"
    ),
    select: "epoll poll",
    selectors: "EpollSelector PollSelector",
    time: "CLOCK_BOOTTIME CLOCK_MONOTONIC clock_gettime",
    faulthandler: "register unregister",
}
ABSENT = ("fcntl", "grp", "pwd", "resource", "termios")

# Read once; it names a module after the platform.
sysconfig.get_config_vars()
# Its number is another one there. Tests send this one as Ctrl-Break.
signal.SIGBREAK = signal.SIGUSR2  # type: ignore[attr-defined]
selectors.DefaultSelector = selectors.SelectSelector  # type: ignore[misc]
multiprocessing.connection._WaitSelector = selectors.SelectSelector  # type: ignore[attr-defined]
for module, names in MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for absent in ABSENT:
    sys.modules[absent] = None  # type: ignore[assignment]
sys.platform = "win32"


def no_proc(event: str, args: tuple[Any, ...]) -> None:
    """Refuse to open what only Linux has."""
    if event == "open" and str(args[0]).startswith("/proc/"):
        raise FileNotFoundError(args[0])


def no_kill(pid: int, number: int) -> None:
    """Fail: on Windows this ends the process, whatever the signal is, or all of its console."""
    raise AssertionError(f"os.kill({pid}, {number}) on Windows")


class NamedLibrary(ctypes.CDLL):
    """On Windows there is no library of the process itself."""

    def __init__(self, name: Any, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("On Windows a library has a name.")
        super().__init__(name, *args, **kwargs)


sys.addaudithook(no_proc)
os.kill = no_kill
ctypes.CDLL = NamedLibrary  # type: ignore[misc]
