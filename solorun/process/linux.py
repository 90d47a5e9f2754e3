"""Linux: processes through /proc and pidfd."""

from __future__ import annotations

import errno
import os
import time

from solorun.owner import Activity, Alive, Gone, Here, Sighting

TYPE_CHECKING = False
if TYPE_CHECKING:  # a status of a thousand idle directories needs neither
    from collections.abc import Callable

    from solorun.process.openfiles import OpenFile
    from solorun.process.table import Row

_HZ = os.sysconf("SC_CLK_TCK")
_DEAD = frozenset("ZXx")
_GONE_OR_HIDDEN = {errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EACCES, errno.EPERM}
"""What the system answers, today and tomorrow, of a process that is over or not ours to see."""
_PR_SET_NAME = 15
_FIRST_NAMESPACE = "pid:[4026531836]"
"""The PID namespace of the machine itself: a constant of the kernel."""


def here() -> Here:
    """This machine, boot and PID namespace.

    The machine's identity joins its name and its machine-id: containers made from one image share the id,
    and taking a neighbour's record for our own after "a reboot" would steal a live lock.
    """
    host = os.uname().nodename
    machine = _read_line("/etc/machine-id") or _read_line("/var/lib/dbus/machine-id")
    boot = _read_line("/proc/sys/kernel/random/boot_id")
    return Here(host, f"{host}/{machine}", boot, _namespace())


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def probe(pid: int) -> Sighting:
    """See whether a process lives. A zombie is dead; a process that may not be looked at is alive.

    A killed process whose first thread is a zombie already, and others not yet, still has its files and locks.
    """
    fields = _stat(pid)
    if fields is None:
        return _probe_by_signal(pid)
    state, threads, started = fields[0].decode(), int(fields[17]), int(fields[19])
    if state in _DEAD and threads <= 1:
        return Gone()
    # Age by the boot clock: the wall clock may have been set since the process was born.
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / _HZ
    return Alive(started, time.time() - age, state)


def _probe_by_signal(pid: int) -> Sighting:
    # /proc may be hidden (hidepid=2) or not mounted, so "no such file" alone is no proof of death.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Gone()
    except PermissionError:
        pass
    return Alive(None, None, "?")


def parent(pid: int) -> int:
    """The PID of the parent, 0 when it cannot be told."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def group(pid: int) -> int:
    """The process group, 0 when it cannot be told."""
    fields = _stat(pid)
    return int(fields[2]) if fields else 0


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from `state` (field 3) on; None when it cannot be read."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 4096)
    except OSError:  # the process ended between open and read
        return None
    finally:
        os.close(fd)
    return _fields(data)


def _fields(stat: bytes) -> list[bytes] | None:
    # The program's name may contain spaces and parentheses; the last parenthesis ends it.
    return stat[stat.rfind(b")") + 2 :].split() or None


def parents() -> dict[int, int]:
    """The parent's PID of every process that can be seen.

    Raises:
        OSError: they cannot be told for the moment, which makes nobody an orphan.
    """
    found = ((pid, _fields(_read(f"/proc/{pid}/stat"))) for pid in pids())
    return {pid: int(fields[1]) if fields else 0 for pid, fields in found}


def activity(pid: int, unseen: str) -> Activity | None:
    """What a process has done so far; None when it is gone or hides it.

    Args:
        pid: which process.
        unseen: name of a thread that does not count.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    cpu_s, switches = 0.0, 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    for thread in threads:
        place = f"/proc/{pid}/task/{thread}"
        times = _read_bytes(f"{place}/stat")
        name, _, rest = times[times.find(b"(") + 1 :].rpartition(b")")
        words = rest.split()
        if not words or (name == unseen.encode() and thread != str(pid)):  # ended meanwhile, or the guard's own
            continue
        cpu_s += (int(words[11]) + int(words[12])) / _HZ
        switches += _switches(_read_bytes(f"{place}/status"))
    return Activity(fields[0].decode(), cpu_s, switches)


def _switches(status: bytes) -> int:
    counted = (b"voluntary_ctxt_switches:", b"nonvoluntary_ctxt_switches:")
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(counted))


def background(window_s: float) -> Activity:  # noqa: ARG001 - one signature per platform
    """What `activity` shows of an idle trainer of ours within a window: nothing, its keeper is told apart."""
    return Activity("S", 0.0, 0)


def name_thread(name: str) -> None:
    """Give the calling thread a name that the process table shows."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    except (OSError, AttributeError):  # a C library without it: the thread stays nameless
        return


def argv(pid: int) -> tuple[str, ...]:
    """The command line, empty when it cannot be read."""
    words = _read_bytes(f"/proc/{pid}/cmdline").split(b"\0")
    return tuple(os.fsdecode(word) for word in words[:-1])


def cwd(pid: int) -> str:
    """The working directory, empty when it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def uid(pid: int) -> int | None:
    """The user who runs it."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def resident_bytes(pid: int) -> int:
    """Resident memory, 0 when it cannot be told."""
    fields = _stat(pid)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def pids() -> list[int]:
    """Every PID that can be seen; none where the system shows none.

    Raises:
        OSError: they cannot be told for the moment (too many open files, no memory), which proves nobody dead.
    """
    return [int(name) for name in _listed("/proc") if name.isdigit()]


def table() -> list[Row]:
    """Every live process that can be seen."""
    from solorun.process.table import Row

    now, page = time.clock_gettime(time.CLOCK_BOOTTIME), os.sysconf("SC_PAGE_SIZE")
    rows = []
    for pid in pids():
        fields = _stat(pid)
        if fields is None or fields[0].decode() in _DEAD or not (words := argv(pid)):
            continue
        started = int(fields[19])
        cpu_s = (int(fields[11]) + int(fields[12])) / _HZ
        resident = int(fields[21]) * page
        terminal = fields[4] != b"0"
        rows.append(Row(pid, int(fields[1]), started, now - started / _HZ, cpu_s, resident, terminal, words))
    return rows


def environment_value(pid: int, name: str) -> str:
    """What a variable was when the process was started; empty where it had none or may not be read."""
    return environment_values(pid, (name,))[0]


def environment_values(pid: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The same for several variables, with one look.

    Raises:
        OSError: they cannot be told for the moment.
    """
    block = b"\0" + _read(f"/proc/{pid}/environ")
    parts = (block.partition(b"\0" + os.fsencode(name) + b"=") for name in names)
    return tuple(os.fsdecode(rest.partition(b"\0")[0]) if found else "" for _, found, rest in parts)


def has_open(pid: int, device: int, inode: int) -> bool:
    """Whether the process has this file or directory open; False where it may not be read."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        try:
            seen = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if (seen.st_dev, seen.st_ino) == (device, inode):
            return True
    return False


def files_open_below(pid: int, directory: str) -> list[OpenFile]:
    """Files below a directory that the process has open; none where that may not be read.

    Args:
        pid: which process.
        directory: absolute, links resolved.

    Raises:
        OSError: they cannot be told for the moment.
    """
    from solorun.process.openfiles import OpenFile

    below = directory.rstrip("/") + "/"
    found = []
    for fd in _descriptors(pid):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            # A deleted file is in no directory, least of all in one that was made anew under the old path.
            is_there = path.startswith(below) and os.stat(f"/proc/{pid}/fd/{fd}").st_nlink > 0
        except OSError:  # closed meanwhile
            continue
        if is_there:
            found.append(OpenFile(path, _opened_to_write(pid, fd)))
    return found


def _descriptors(pid: int) -> list[str]:
    return _listed(f"/proc/{pid}/fd")


def _opened_to_write(pid: int, fd: str) -> bool:
    for line in _read(f"/proc/{pid}/fdinfo/{fd}").splitlines():
        if line.startswith(b"flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def has_flock(pid: int, device: int, inode: int) -> bool:
    """Whether the process holds a `flock` on this file or directory; False where it may not be read."""
    return flock_taker(pid, device, inode) is not None


def answers(pid: int, number: int) -> str:
    """What a process does with a signal: "ignored", "caught" or "default"; empty where it cannot be told."""
    masks = {}
    for line in _read_bytes(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(b":")
        if name in (b"SigIgn", b"SigCgt"):
            masks[name] = int(value, 16) >> (number - 1) & 1
    if not masks:
        return ""
    return "ignored" if masks.get(b"SigIgn") else "caught" if masks.get(b"SigCgt") else "default"


def mounts() -> list[tuple[str, str]]:
    """Mount point and kind of every file system, in the order in which they were mounted."""
    found = []
    for line in _read_bytes("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(b" - ")
        found.append((os.fsdecode(_unescaped(before.split()[4])), after.split()[0].decode()))
    return found


def _unescaped(text: bytes) -> bytes:
    """A path as the kernel writes it in its tables: a space is \\040."""
    first, *rest = text.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def open_directories(pid: int) -> list[str] | None:
    """Directories that the process has open; None where it may not be told."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return None
    return sorted({link for link in links if os.path.isdir(link) and os.path.isabs(link)})


def flock_taker(pid: int, device: int, inode: int) -> int | None:
    """The PID that took the flock which this process has on a file, perhaps its parent's; None where it has none.

    In a PID namespace the kernel tells 0 of one that is gone: that is a lock all the same.

    Raises:
        OSError: it cannot be told for the moment.
    """
    for name in _descriptors(pid):
        try:
            seen = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if (seen.st_dev, seen.st_ino) == (device, inode) and (flock := _flock(pid, name)) is not None:
            return int(flock[5])
    return None


def _flock(pid: int, name: str) -> list[bytes] | None:
    """The words of the flock that a descriptor carries: `lock: 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ...`."""
    for line in _read(f"/proc/{pid}/fdinfo/{name}").splitlines():
        words = line.split()
        if words[:1] == [b"lock:"] and words[2] == b"FLOCK":
            return words
    return None


def flocked() -> frozenset[int]:
    """The inode numbers of what somebody has a flock on, as far as may be seen."""
    if _namespace() == _FIRST_NAMESPACE:
        lines = [line.split() for line in _read_bytes("/proc/locks").splitlines()]
        return frozenset(int(words[5].rpartition(b":")[2]) for words in lines if words[1:2] == [b"FLOCK"])
    # In a container that list leaves out the locks of the dead, which are the ones that are looked for.
    found = (_flock(pid, name) for pid in pids() for name in _descriptors(pid))
    return frozenset(int(words[6].rpartition(b":")[2]) for words in found if words)


def send(pid: int, started: int, number: int) -> bool:
    """Send a signal to exactly this process. False when it is gone.

    The descriptor pins the process, so the PID cannot be recycled between the check and the signal.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # an old kernel, or a container that forbids it: checked immediately before, and sent by number
        return _send_if(pid, started, lambda: os.kill(pid, number))
    import signal

    try:
        return _send_if(pid, started, lambda: signal.pidfd_send_signal(pidfd, number))
    finally:
        os.close(pidfd)


def _send_if(pid: int, started: int, deliver: Callable[[], None]) -> bool:
    seen = probe(pid)
    if not isinstance(seen, Alive) or seen.started != started:
        return False
    try:
        deliver()
    except ProcessLookupError:
        return False
    return True


def path_of_descriptor(fd: int) -> str | None:
    """Where an open directory is now; None when it was deleted or cannot be told."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    return path if path.startswith("/") else None


def _read_bytes(path: str) -> bytes:
    """What a file of /proc holds, empty when it cannot be read."""
    try:
        return _read(path)
    except OSError:
        return b""


def _listed(path: str) -> list[str]:
    """The names in a folder of /proc, none where it is not there or hidden; any other failure is raised."""
    try:
        return os.listdir(path)
    except OSError as error:
        if error.errno not in _GONE_OR_HIDDEN:
            raise
        return []


def _read(path: str) -> bytes:
    """What a file of /proc holds, empty where it is not there or hidden; any other failure is raised."""
    found = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # without a file object, which asks six things more
        try:
            while data := os.read(fd, 1 << 15):
                found += data
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _GONE_OR_HIDDEN:
            raise
        return b""
    return found


def _read_line(path: str) -> str:
    return _read_bytes(path).decode("ascii", "replace").strip()
