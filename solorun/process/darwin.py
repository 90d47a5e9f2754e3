"""macOS: processes through psutil and sysctl. No Mac was at hand: tested with injected answers, and as a whole by
`tests/guard/test_mac.py` on a Linux that has lost what a Mac does not have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import os
import platform
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

from solorun.frozen import replace
from solorun.owner import Activity, Alive, Gone, Here, Sighting
from solorun.process.openfiles import OpenFile, writes_by_name
from solorun.process.table import Row

_F_GETPATH = 50
_PROC_PIDFDVNODEPATHINFO, _FWRITE = 2, 2
_CTL_KERN, _KERN_PROC, _KERN_PROC_PID = 1, 14, 1
_NEVER_TOLD = {errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What the kernel answers, today and tomorrow, of a process that is over or that it shields from everybody."""


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
    """This machine and boot; macOS has one PID namespace.

    A boot that is not told stays empty, and the start tokens, which are times, decide alone. The time of the boot would
    move when the clock is set, and a live run would then look like one from before a restart.
    """
    host = platform.node()
    return Here(host, hardware() or host, sysctl("kern.bootsessionuuid"), "")


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
    except _refusals(ps):
        return Alive(None, None, "?")
    if status in (ps.STATUS_ZOMBIE, ps.STATUS_DEAD):
        return Gone()
    return Alive(raw_start(pid) or None, born, _letter(status, ps))


def _letter(status: str, ps: Any) -> str:
    known = {ps.STATUS_RUNNING: "R", ps.STATUS_STOPPED: "T", ps.STATUS_DISK_SLEEP: "D", ps.STATUS_ZOMBIE: "Z"}
    return known.get(status, "S")


def _refusals(ps: Any) -> tuple[type[BaseException], ...]:
    """What psutil raises where it has no answer: the system's own error sometimes comes through bare."""
    return (ps.Error, OSError, MemoryError, RuntimeError, SystemError)


def _ask(pid: int, question: str, otherwise: Any, psutil: Any = None) -> Any:
    """What psutil tells of a process; `otherwise` where it does not, for whatever reason."""
    try:
        return _look(pid, question, otherwise, psutil)
    except OSError:
        return otherwise


def _look(pid: int, question: str, otherwise: Any, psutil: Any = None) -> Any:
    """The same; `otherwise` only of a process that is gone or hidden.

    Hidden (AccessDenied, psutil's own RuntimeError and SystemError) is another user's process, and one that the kernel
    shields: they answer so for good, and raised, that would keep everybody from starting for ever.

    Raises:
        OSError: it cannot be told for the moment (no memory, too many open files), which proves nobody dead.
    """
    ps = psutil or _psutil()
    try:
        return getattr(ps.Process(pid), question)()
    except (ps.Error, PermissionError, ProcessLookupError, RuntimeError, SystemError):
        return otherwise
    except OSError as error:
        if error.errno not in _NEVER_TOLD:
            raise
        return otherwise
    except MemoryError:  # psutil asks for a megabyte to read an environment into
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None


def parent(pid: int, psutil: Any = None) -> int:
    """The PID of the parent, 0 when it cannot be told."""
    return _ask(pid, "ppid", 0, psutil) or 0


def group(pid: int) -> int:
    """The process group, 0 when it cannot be told."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def parents(psutil: Any = None) -> dict[int, int]:
    """The parent's PID of every process that can be seen.

    Raises:
        OSError: they cannot be told for the moment, which makes nobody an orphan.
    """
    return {pid: _look(pid, "ppid", 0, psutil) or 0 for pid in pids(psutil)}


def activity(pid: int, unseen: str, psutil: Any = None) -> Activity | None:  # noqa: ARG001 - one signature per platform
    """What a process has done so far; None when it is gone or hides it. No thread can be told apart here."""
    ps = psutil or _psutil()
    try:
        process = ps.Process(pid)
        with process.oneshot():
            status, times, switches = process.status(), process.cpu_times(), process.num_ctx_switches()
    except ps.ZombieProcess:
        return Activity("Z", 0.0, 0)
    except _refusals(ps):
        return None
    return Activity(_letter(status, ps), times.user + times.system, switches.voluntary + switches.involuntary)


def background(window_s: float) -> Activity:
    """What `activity` shows of an idle trainer of ours within a window: its keeper, which wakes every second.

    Four context switches and two milliseconds of CPU time for each time it may wake are more than it needs.
    """
    wakes = math.ceil(window_s) + 1
    return Activity("S", 0.002 * wakes, 4 * wakes)


def name_thread(name: str, libc: Any = None) -> None:
    """Give the calling thread a name that debuggers show. macOS names no other thread: the call has one argument."""
    with contextlib.suppress(OSError, AttributeError):
        (libc or ctypes.CDLL(None)).pthread_setname_np(name.encode())


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
    """Every PID that can be seen.

    Raises:
        OSError: they cannot be told for the moment, which proves nobody dead.
    """
    ps = psutil or _psutil()
    try:
        return list(ps.pids())
    except (ps.Error, MemoryError, RuntimeError, SystemError) as error:
        raise OSError(errno.ENOMEM, str(error) or os.strerror(errno.ENOMEM)) from None


_PS = ("ps", "-axww", "-o", "pid=,ppid=,tty=,time=,rss=,command=")
"""`ps` sees every user's processes, which psutil without root does not; a command line comes as one text."""


def _run_ps() -> str:
    import subprocess

    try:
        return subprocess.run(_PS, capture_output=True, text=True, errors="replace", timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def table(
    psutil: Any = None,
    raw_start: Callable[[int], int] = _raw_start,
    run_ps: Callable[[], str] = _run_ps,
    now: Callable[[], float] = time.time,
) -> list[Row]:
    """Every live process that can be seen: the users' own through psutil, others' through `ps`."""
    ps = psutil or _psutil()
    listed = {row.pid: row for line in run_ps().splitlines() if (row := parse_ps(line)) is not None}
    rows = []
    for pid in pids(ps):
        try:
            process = ps.Process(pid)
            with process.oneshot():
                if process.status() in (ps.STATUS_ZOMBIE, ps.STATUS_DEAD):
                    continue
                age_s, parent, words = now() - process.create_time(), process.ppid(), tuple(process.cmdline())
                times, resident = process.cpu_times(), process.memory_info().rss
                terminal = process.terminal() is not None
        except (ps.NoSuchProcess, ps.ZombieProcess):
            continue
        except _refusals(ps):
            if pid in listed:
                rows.append(replace(listed[pid], started=raw_start(pid)))
            continue
        rows.append(Row(pid, parent, raw_start(pid), age_s, times.user + times.system, resident, terminal, words))
    return rows


def parse_ps(line: str) -> Row | None:
    """One line of `ps`; None for one of another shape. The age stays 0: it is not asked for."""
    words = line.split(None, 5)
    if len(words) < 6 or not (words[0].isdigit() and words[1].isdigit() and words[4].isdigit()):
        return None
    minutes, _, seconds = words[3].replace(",", ".").rpartition(":")
    try:
        hours_and_minutes = [int(part) for part in minutes.replace("-", ":").split(":") if part]
        cpu_s = float(seconds)
    except ValueError:
        return None
    for unit, part in zip((60, 3600, 86_400), reversed(hours_and_minutes), strict=False):
        cpu_s += unit * part
    resident, argv = int(words[4]) * 1024, tuple(words[5].split())
    return Row(int(words[0]), int(words[1]), 0, 0.0, cpu_s, resident, not words[2].startswith("?"), argv)


def environment_value(pid: int, name: str, psutil: Any = None) -> str:
    """What a variable was when the process was started; empty where it had none or may not be read."""
    return environment_values(pid, (name,), psutil)[0]


def environment_values(pid: int, names: tuple[str, ...], psutil: Any = None) -> tuple[str, ...]:
    """The same for several variables, with one look.

    Raises:
        OSError: they cannot be told for the moment.
    """
    found = _look(pid, "environ", {}, psutil)
    return tuple(str(found.get(name, "")) for name in names)


def has_open(pid: int, device: int, inode: int, psutil: Any = None) -> bool:  # noqa: ARG001 - one signature per platform
    """Whether the process has this file open. macOS does not list another process's directories: always False."""
    return False


def _open_flags(pid: int, fd: int) -> int | None:
    """How a descriptor of another process was opened; None when the kernel does not tell.

    `struct vnode_fdinfowithpath` begins with `fi_openflags`, a 32-bit number with the kernel's FREAD and FWRITE.
    """
    answer = ctypes.create_string_buffer(4096)
    try:
        size = ctypes.CDLL(None).proc_pidfdinfo(pid, fd, _PROC_PIDFDVNODEPATHINFO, answer, len(answer))
    except AttributeError:
        return None
    return int(struct.unpack_from("<I", answer.raw)[0]) if size >= 4 else None


def files_open_below(
    pid: int, directory: str, psutil: Any = None, open_flags: Callable[[int, int], int | None] = _open_flags
) -> list[OpenFile]:
    """Files below a directory that the process has open; none where that may not be read.

    Where the kernel does not tell what a file was opened for, its name and the program's decide.
    """
    below = directory.rstrip("/") + "/"
    found = []
    for file in _look(pid, "open_files", (), psutil):
        if not file.path.startswith(below):
            continue
        flags = open_flags(pid, file.fd)
        program = os.path.basename((argv(pid, psutil) or ("",))[0])
        by_name = writes_by_name(os.path.basename(file.path), program)
        found.append(OpenFile(file.path, by_name if flags is None else bool(flags & _FWRITE)))
    return found


def has_flock(pid: int, device: int, inode: int) -> bool:  # noqa: ARG001 - one signature per platform
    """Whether the process holds a `flock` on this file; macOS does not tell: always False."""
    return False


def answers(pid: int, number: int) -> str:  # noqa: ARG001 - one signature per platform
    """What a process does with a signal; macOS does not tell: always empty."""
    return ""


def mounts(psutil: Any = None) -> list[tuple[str, str]]:
    """Mount point and kind of every file system."""
    return [(part.mountpoint, part.fstype) for part in (psutil or _psutil()).disk_partitions(all=True)]


def open_directories(pid: int) -> list[str] | None:  # noqa: ARG001 - one signature per platform
    """Directories that the process has open; None, because macOS does not list another process's directories."""
    return None


def flock_taker(pid: int, device: int, inode: int, psutil: Any = None) -> int | None:  # noqa: ARG001 - as has_open
    """The PID that took the flock which this process has on a file. macOS does not tell: always None."""
    return None


def flocked() -> frozenset[int]:
    """The inode numbers of what somebody has a flock on. macOS does not tell: always empty."""
    return frozenset()


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
        path = os.fsdecode(fcntl.fcntl(fd, _F_GETPATH, bytes(1024)).rstrip(b"\0"))
        # Of a deleted one the kernel may still tell where it was, and another may stand there by now.
        return path if os.path.samestat(os.stat(path), os.fstat(fd)) else None
    except OSError:
        return None
