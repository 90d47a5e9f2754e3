"""Runs a module or a program as macOS would: without Linux' calls and files, with the Mac's calls answered from psutil.

    python as_a_mac.py -m solorun status
    python as_a_mac.py trainer.py results/mine

What it cannot stand in for: kqueue (the guard then polls), and the Mac's own kernel.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import runpy
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from types import SimpleNamespace
from typing import Any

import psutil

LOADED = (platform, resource, sqlite3, subprocess, tempfile, urllib.request, uuid)
"""Of the standard library, loaded while it still is Linux': what it would look for on a Mac is not here."""

LINUX_ALONE: dict[Any, tuple[str, ...]] = {
    os: (
        "O_TMPFILE", "O_PATH", "O_DIRECT", "O_NOATIME", "O_RSYNC", "pidfd_open", "sched_getaffinity",
        "sched_setaffinity", "sched_setscheduler", "sched_getscheduler", "posix_fadvise", "posix_fallocate",
        "fdatasync", "setresuid", "setresgid", "getresuid", "getresgid", "memfd_create", "eventfd", "splice",
        "copy_file_range", "getrandom", "unshare", "setns", "getxattr", "listxattr", "pipe2", "dup3",
    ),
    time: ("CLOCK_BOOTTIME", "CLOCK_TAI", "pthread_getcpuclockid"),
    select: ("epoll", *(name for name in dir(select) if name.startswith("EPOLL"))),
    signal: (
        "pidfd_send_signal", "sigtimedwait", "sigwaitinfo", "SIGPWR", "SIGSTKFLT", "SIGPOLL", "SIGRTMIN", "SIGRTMAX",
        "SIGCLD",
    ),
    fcntl: tuple(name for name in dir(fcntl) if name.startswith(("F_OFD", "F_ADD_SEALS", "F_SETLEASE", "F_NOTIFY"))),
    resource: ("prlimit", "RLIMIT_RTPRIO", "RLIMIT_NICE"),
}  # fmt: skip

_F_GETPATH = 50
_linux_fcntl = fcntl.fcntl


class Libc:
    """The calls of the Mac's C library that the guard makes; any other name is missing, as Linux' are there."""

    def __init__(self, name: str | None = None, use_errno: bool = False) -> None:  # noqa: ARG002 - as ctypes.CDLL
        assert name is None, f"a Mac has no {name}"

    def sysctlbyname(self, name: bytes, answer: Any, *_more: object) -> int:
        answer.value = {b"kern.bootsessionuuid": b"0F3C8A6E-0000-4000-8000-00000000B007"}.get(name, b"")
        return 0

    def gethostuuid(self, answer: Any, wait: Any) -> int:  # noqa: ARG002 - as the Mac's
        answer[:] = uuid.UUID(int=7).bytes
        return 0

    def sysctl(self, question: Any, length: int, answer: Any, size: Any, *_more: object) -> int:
        assert (list(question[:3]), length) == ([1, 14, 1], 4)
        try:
            born = round(psutil.Process(question[3]).create_time() * 1e6)
        except psutil.Error:
            size._obj.value = 0  # a Mac answers with nothing, and no error
            return 0
        answer[:12] = struct.pack("<qi", *divmod(born, 1_000_000))
        return 0

    def pthread_setname_np(self, name: bytes) -> int:
        assert len(name) < 64
        return 0

    def proc_pidfdinfo(self, *_question: object) -> int:
        return 0


def _mac_fcntl(fd: int, command: int, argument: Any = 0) -> Any:
    if command != _F_GETPATH:
        return _linux_fcntl(fd, command, argument)
    return os.fsencode(_readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")).ljust(1024, b"\0")


def _no_linux_files(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and _is_linux(arguments[0]) and not _asked_by_psutil():
        raise FileNotFoundError(2, "a Mac has no such file", arguments[0])


_readlink = os.readlink


def _mac_readlink(path: Any, **options: Any) -> Any:
    if _is_linux(path) and not _asked_by_psutil():
        raise FileNotFoundError(2, "a Mac has no such file", path)
    return _readlink(path, **options)


def _is_linux(path: object) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(("/proc", "/sys/"))


def _asked_by_psutil() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if os.path.basename(os.path.dirname(frame.f_code.co_filename)) == "psutil":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def become_a_mac() -> None:
    """From here on, this process is on a Mac."""
    for module, gone in LINUX_ALONE.items():
        for name in gone:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "darwin"
    ctypes.CDLL = Libc  # type: ignore[assignment, misc]
    fcntl.fcntl = _mac_fcntl  # type: ignore[assignment]
    os.readlink = _mac_readlink
    os.uname = lambda: SimpleNamespace(sysname="Darwin", nodename="studio", machine="arm64")  # type: ignore[assignment, return-value]
    platform.node = lambda: "studio"
    platform.machine = lambda: "arm64"
    sys.addaudithook(_no_linux_files)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    become_a_mac()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
