"""What the measured task does: nothing; or, for a witness, tell the measuring side that it began.

Owns the datagrams between the two. Never sends any while a drain is measured.
"""

import os
import socket
import struct
import time

FORMAT = "qd"
DOOR = os.environ.get("BENCH_TELL", "")
_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def nothing(number: int) -> None:
    """Do nothing."""


def tell(number: int) -> None:
    """Tell which call began, and when."""
    _socket.sendto(struct.pack(FORMAT, number, time.time()), DOOR)


noop = tell if DOOR else nothing


def read(message: bytes) -> tuple[int, float]:
    """Return the number of the call and the wall clock of its first line."""
    number, began = struct.unpack(FORMAT, message)
    return number, began
