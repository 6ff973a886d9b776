"""Proves that no other machine reaches a service: the stand-ins let everybody in."""

import contextlib
import os
import pathlib
import platform
import sys

from services import fail

# 127.0.0.1, ::1 and ::ffff:127.0.0.1 in /proc/net, on a little-endian machine.
LOOPBACK = {
    "0100007F",
    "00000000000000000000000001000000",
    "0000000000000000FFFF00000100007F",
}
LISTEN = "0A"


def check(processes):
    """Fails if one of these listens beyond loopback. Only Linux says so, in /proc."""
    if platform.system() != "Linux" or sys.byteorder != "little":
        return
    for process, _ in processes.children:
        if addresses := beyond_loopback(descendants(process.pid)):
            fail(f"{process.args[0]} listens beyond loopback, on {', '.join(addresses)}"
                 " (/proc/net/tcp): set what binds it to 127.0.0.1")


def descendants(pid):
    """This process and those that it started."""
    found = [pid]
    for parent in found:
        for children in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # The thread has ended.
                found += map(int, children.read_text().split())
    return found


def beyond_loopback(pids):
    """Where these listen for other machines: `address:port` in the kernel's hexadecimal."""
    sockets = set()
    for pid in pids:
        for descriptor in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):  # It was closed meanwhile.
                sockets.add(os.readlink(descriptor))
    found = []
    for family in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            open_to_all = state == LISTEN and address.split(":")[0] not in LOOPBACK
            if open_to_all and f"socket:[{rest[5]}]" in sockets:
                found.append(address)
    return found
