"""The identity of processes.

Owns worker ids, and the check whether a process on this host has ended. Never asks another host.
"""

import ctypes
import os
import platform
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import Worker


def make_worker_id(name: str | None = None) -> str:
    """Return an id unique to this start: the name, or host and pid, and random text."""
    name = name or f"{platform.node() or 'host'}-{os.getpid()}"
    return f"{name[:100]}-{secrets.token_hex(4)}"


def process_identity() -> tuple[str, int, int]:
    """Return the host key of this process, its pid, and its start in ticks since boot."""
    return host_key(), os.getpid(), _started(os.getpid()) or 0


@cache
def host_key() -> str:
    """Return a key of this host or container, where pids are unique; "" if that is unknown."""
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        # Its virtual machines may start from copies of one memory, with equal keys and pids.
        return ""
    node = platform.node()[:60]
    if sys.platform == "darwin":
        boot = _macos_boot_id()
        return f"{node} {boot}" if boot else ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{node} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _macos_boot_id() -> str:
    """Return what macOS calls this start of the machine; "" if it does not say."""
    text = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(text))
    libc = ctypes.CDLL(None)
    if libc.sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, 0):
        return ""
    return text.value.decode()


def is_gone(worker: "Worker") -> bool:
    """Return whether the worker's process has certainly ended. Only its own host can know."""
    if not worker.host_key or worker.pid is None or worker.host_key != host_key():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Another user's process, whose start this one may not be allowed to read.
        pass
    started = _started(worker.pid)
    return started is not None and started != worker.pid_started


def _started(pid: int) -> int | None:
    """Return when that process started, in ticks since boot; 0 if it ended, None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended, though its parent has not asked for its exit code yet.
    return 0 if fields[0] in "ZX" else int(fields[19])
