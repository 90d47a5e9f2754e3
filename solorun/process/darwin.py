"""macOS: processes through psutil and sysctl. Tested with injected answers; no Mac was at hand."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import uuid
from collections.abc import Callable
from typing import Any

from solorun.owner import Alive, Gone, Here, Sighting

_F_GETPATH = 50
_CTL_KERN, _KERN_PROC, _KERN_PROC_PID = 1, 14, 1


def _psutil() -> Any:
    import psutil

    return psutil


def _sysctl(name: str) -> str:
    """A string of the kernel's, such as kern.bootsessionuuid."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t(256)
    answer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), answer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    return answer.value.decode("ascii", "replace")


def _hardware_uuid() -> str:
    """The machine's own UUID: stays when the network renames the host, as it does to a laptop or a Studio."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_ubyte * 16)()
    wait = (ctypes.c_long * 2)(5, 0)
    if libc.gethostuuid(answer, wait) != 0:
        return ""
    return str(uuid.UUID(bytes=bytes(answer)))


def here(sysctl: Callable[[str], str] = _sysctl, hardware: Callable[[], str] = _hardware_uuid) -> Here:
    """This machine and boot; macOS has one PID namespace."""
    host = platform.node()
    boot = sysctl("kern.bootsessionuuid") or sysctl("kern.boottime")
    return Here(host, hardware() or host, boot, "")


def _raw_start(pid: int) -> int:
    """Microseconds of the kernel's own start time, 0 when it cannot be read.

    Not psutil's: it moves its answer along when the clock is set, and a token must never move. `kinfo_proc` begins
    with `p_starttime`, a struct timeval of a 64-bit and a 32-bit number.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    question = (ctypes.c_int * 4)(_CTL_KERN, _KERN_PROC, _KERN_PROC_PID, pid)
    answer = ctypes.create_string_buffer(1024)
    size = ctypes.c_size_t(len(answer))
    if libc.sysctl(question, 4, answer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0 or size.value < 16:
        return 0
    seconds, microseconds = struct.unpack_from("<qi", answer.raw)
    return int(seconds * 1_000_000 + microseconds)


def probe(pid: int, psutil: Any = None, raw_start: Callable[[int], int] = _raw_start) -> Sighting:
    """See whether a process lives. A zombie is dead; a process that may not be looked at is alive."""
    ps = psutil or _psutil()
    try:
        process = ps.Process(pid)
        with process.oneshot():
            status, born = process.status(), process.create_time()
    except ps.ZombieProcess:
        return Gone()
    except ps.NoSuchProcess:
        return Gone()
    except ps.AccessDenied:
        return Alive(None, None, "?")
    if status in (ps.STATUS_ZOMBIE, ps.STATUS_DEAD):
        return Gone()
    letter = {ps.STATUS_RUNNING: "R", ps.STATUS_STOPPED: "T", ps.STATUS_DISK_SLEEP: "D"}.get(status, "S")
    return Alive(raw_start(pid) or None, born, letter)


def _ask(pid: int, question: str, otherwise: Any, psutil: Any = None) -> Any:
    ps = psutil or _psutil()
    try:
        return getattr(ps.Process(pid), question)()
    except ps.Error:
        return otherwise


def parent(pid: int, psutil: Any = None) -> int:
    """The PID of the parent, 0 when it cannot be told."""
    return _ask(pid, "ppid", 0, psutil) or 0


def group(pid: int) -> int:
    """The process group, 0 when it cannot be told."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def argv(pid: int, psutil: Any = None) -> tuple[str, ...]:
    """The command line, empty when it cannot be read."""
    return tuple(_ask(pid, "cmdline", (), psutil))


def cwd(pid: int, psutil: Any = None) -> str:
    """The working directory, empty when it cannot be read."""
    return str(_ask(pid, "cwd", "", psutil))


def uid(pid: int, psutil: Any = None) -> int | None:
    """The user who runs it."""
    uids = _ask(pid, "uids", None, psutil)
    return None if uids is None else int(uids.real)


def resident_bytes(pid: int, psutil: Any = None) -> int:
    """Resident memory, 0 when it cannot be told."""
    memory = _ask(pid, "memory_info", None, psutil)
    return 0 if memory is None else int(memory.rss)


def pids(psutil: Any = None) -> list[int]:
    """Every PID that can be seen."""
    return list((psutil or _psutil()).pids())


def environment_value(pid: int, name: str, psutil: Any = None) -> str:
    """What a variable was when the process was started; empty where it had none or may not be read."""
    return str(_ask(pid, "environ", {}, psutil).get(name, ""))


def has_open(pid: int, device: int, inode: int, psutil: Any = None) -> bool:  # noqa: ARG001 - one signature per platform
    """Whether the process has this file open. macOS does not list another process's directories: always False."""
    return False


def send(pid: int, started: int, number: int, psutil: Any = None, raw_start: Callable[[int], int] = _raw_start) -> bool:
    """Send a signal to exactly this process, checked immediately before. False when it is gone."""
    seen = probe(pid, psutil, raw_start)
    if not isinstance(seen, Alive) or seen.started != started:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def path_of_descriptor(fd: int) -> str | None:
    """Where an open directory is now; None when it was deleted or cannot be told."""
    try:
        return os.fsdecode(fcntl.fcntl(fd, _F_GETPATH, bytes(1024)).rstrip(b"\0"))
    except OSError:
        return None
