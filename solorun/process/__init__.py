"""Processes: who is alive, who is who, and signals that reach exactly the process that was meant.

The two platform rooms answer the same questions; everything else in the guard asks here.
"""

from __future__ import annotations

import os
import sys

from solorun.owner import Activity, Alive, Here, ProcessId, Sighting

if sys.platform == "darwin":
    from solorun.process import darwin as _system
else:
    from solorun.process import linux as _system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from solorun.process.openfiles import OpenFile
    from solorun.process.table import Seen

RUN_ID_VARIABLE = "SOLORUN_RUN_ID"
"""Every process of a run carries the run's id in its environment, whatever it closes or forks."""

SUPERVISOR_VARIABLE = "SOLORUN_SUPERVISOR"
"""Under a supervisor: its PID and start token."""

KEEPER_THREAD = "solorun-keeper"
"""The guard's own thread in a trainer. It wakes every second, which says nothing about the trainer."""

system: ModuleType = _system

_LOOKS = 16
"""How often the table is listed until nobody new is in it: on a machine that compiles there is always somebody."""


_place: list[Here] = []
_users: dict[int, str] = {}


def here() -> Here:
    """This machine, boot and PID namespace."""
    if not _place:
        _place.append(_system.here())
    return _place[0]


def probe(pid: int) -> Sighting:
    """See whether a PID of this place lives."""
    return _system.probe(pid)


def is_unused(pid: int) -> bool:
    """Whether no process has this PID, not even a zombie: one call, for a PID that is believed to be dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def identify(pid: int) -> ProcessId | None:
    """The full identity of a live process; None when it is gone or hides its start time."""
    seen = _system.probe(pid)
    if isinstance(seen, Alive) and seen.started is not None:
        return ProcessId(here(), pid, seen.started)
    return None


def identify_self() -> ProcessId:
    """The identity of the calling process."""
    return identify(os.getpid()) or ProcessId(here(), os.getpid(), 0)


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process lives. Processes of another place count as alive: unreachable is never dead."""
    place = here()
    if process.here.boot != place.boot:
        return process.here.machine != place.machine
    if process.here.namespace != place.namespace:
        return True
    seen = _system.probe(process.pid)
    return isinstance(seen, Alive) and seen.started in (None, process.started)


def send(process: ProcessId, number: int) -> bool:
    """Send a signal to exactly this process, waking it if it was suspended. False when it is gone.

    A stopped process hears nothing but SIGCONT and SIGKILL, so SIGCONT goes along with a polite signal.

    Raises:
        PermissionError: it belongs to another user.
    """
    if process.here.boot != here().boot or process.here.namespace != here().namespace:
        return False
    import signal

    reached = _system.send(process.pid, process.started, number)
    if reached and number not in (signal.SIGKILL, signal.SIGCONT):
        _system.send(process.pid, process.started, signal.SIGCONT)
    return reached


def send_group(leader: ProcessId, number: int) -> bool:
    """Send a signal to the process group that this process leads. False when it is gone or leads none."""
    if not is_alive(leader) or _system.group(leader.pid) != leader.pid:
        return False
    import signal

    try:
        os.killpg(leader.pid, number)
        if number not in (signal.SIGKILL, signal.SIGCONT):
            os.killpg(leader.pid, signal.SIGCONT)
    except ProcessLookupError:
        return False
    return True


def carries(pid: int, run_id: str) -> bool:
    """Whether a process was started as part of this run; False where that may not be read.

    Raises:
        OSError: that cannot be told for the moment.
    """
    return bool(_system.environment_value(pid, RUN_ID_VARIABLE) == run_id)


def carriers(run_id: str) -> list[ProcessId]:
    """Live processes, other than the caller, that were started as part of this run.

    Raises:
        OSError: they cannot be looked for (too many open files, no memory). That proves nobody dead.
    """
    looked, found = {os.getpid()}, list[ProcessId]()
    for _ in range(_LOOKS):  # a daemon may be forked while one lasts, by a parent that ends before it is looked at
        new = [pid for pid in _system.pids() if pid not in looked]
        looked.update(new)
        seen = [(pid, _system.probe(pid)) for pid in new if carries(pid, run_id)]
        # One whose start time cannot be told for the moment lives all the same.
        found += [ProcessId(here(), pid, one.started or 0) for pid, one in seen if isinstance(one, Alive)]
        if not new:
            break
    return found


def parents() -> dict[int, int]:
    """The parent's PID of every process: one look at the process table.

    Raises:
        OSError: it cannot be read for the moment.
    """
    found: dict[int, int] = _system.parents()
    return found


def descendants(process: ProcessId, table: Mapping[int, int] | None = None) -> list[ProcessId]:
    """Live processes, other than the caller, that this process or its children started, as far as they still descend.

    Args:
        process: whose; one that is gone has none, since its children belong to another parent by then.
        table: what `parents` told a moment ago; None to look now.
    """
    if not is_alive(process):
        return []
    children: dict[int, list[int]] = {}
    for pid, parent in (parents() if table is None else table).items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    front = [process.pid]
    while front:
        below = children.pop(front.pop(), [])
        found += below
        front += below
    named = (identify(pid) for pid in found if pid != os.getpid())
    return [one for one in named if one is not None]


def activity(pid: int) -> Activity | None:
    """What a process has done so far, the guard's own thread left out; None when it is gone or hides it."""
    return _system.activity(pid, KEEPER_THREAD)


def background(window_s: float) -> Activity:
    """The most that `activity` shows of an idle trainer of ours within a window: its keeper, where that shows."""
    return _system.background(window_s)


def name_this_thread(name: str) -> None:
    """Give the calling thread a name that the process table shows, at most 15 characters."""
    _system.name_thread(name)


def runs_alive() -> dict[str, list[ProcessId]]:
    """Every live process, other than the caller, that was started as part of a run, by the run's id."""
    own = os.getpid()
    found: dict[str, list[ProcessId]] = {}
    for pid in _system.pids():
        run_id = "" if pid == own else _system.environment_value(pid, RUN_ID_VARIABLE)
        if run_id and (process := identify(pid)) is not None:
            found.setdefault(run_id, []).append(process)
    return found


def census() -> tuple[Seen, ...]:
    """One look at the whole process table; the caller is in it."""

    def variables(pid: int) -> tuple[str, str]:
        run_id, supervisor = _system.environment_values(pid, (RUN_ID_VARIABLE, SUPERVISOR_VARIABLE))
        return run_id, supervisor

    from solorun.process.table import enrich

    return enrich(_system.table(), here(), user_of, _system.cwd, variables)


def holders(device: int, inode: int) -> list[ProcessId]:
    """Live processes, other than the caller, that have this file or directory open, as far as may be seen."""
    own = os.getpid()
    found = (identify(pid) for pid in _system.pids() if pid != own and _system.has_open(pid, device, inode))
    return [process for process in found if process is not None]


def open_directories(pid: int) -> list[str] | None:
    """Directories that a PID has open; None where that may not be told."""
    found: list[str] | None = _system.open_directories(pid)
    return found


def files_open_below(pid: int, directory: str) -> tuple[OpenFile, ...]:
    """Files below a directory that a process has open, as far as may be seen.

    Args:
        pid: which process.
        directory: absolute, links resolved.
    """
    return tuple(_system.files_open_below(pid, directory))


def flock_holders(device: int, inode: int) -> list[ProcessId]:
    """Live processes, other than the caller, that hold the kernel's lock on this file, as far as may be seen."""
    own = os.getpid()
    found = (identify(pid) for pid in _system.pids() if pid != own and _system.has_flock(pid, device, inode))
    return [process for process in found if process is not None]


def answers(pid: int, number: int) -> str:
    """What a process does with a signal: "ignored", "caught" or "default"; empty where it cannot be told."""
    return str(_system.answers(pid, number))


def foreign_disk(path: str) -> str:
    """The kind of file system under a path where its locks may be another kernel's too; empty where they are not.

    Args:
        path: absolute, links resolved.
    """
    from solorun.process.openfiles import LOCAL_DISKS, kind_of_disk

    kind = kind_of_disk(path, _system.mounts())
    return "" if kind in LOCAL_DISKS else kind or "unknown"


def may_signal(process: ProcessId) -> bool:
    """Whether the system lets the caller signal this process; also True when it is gone."""
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def flock_sharers(device: int, inode: int) -> list[tuple[ProcessId, int]]:
    """Live processes, other than the caller, that have a flock on this file, each with the PID that took it.

    A forked worker shares the lock of its parent, and keeps it when the parent is gone. Of a taker that is gone the
    PID may be told as 0.
    """
    own = os.getpid()
    found = ((pid, _system.flock_taker(pid, device, inode)) for pid in _system.pids() if pid != own)
    named = ((identify(pid), taker) for pid, taker in found if taker is not None)
    return [(one, taker) for one, taker in named if one is not None]


def flocked() -> frozenset[int]:
    """The inode numbers of what somebody has a flock on, as far as may be seen: one look for many files."""
    found: frozenset[int] = _system.flocked()
    return found


def lock_heirs(device: int, inode: int) -> list[ProcessId]:
    """Live processes that have a flock which they did not take, and whose taker has let go of it or is gone."""
    found = flock_sharers(device, inode)
    holders = {one.pid for one, _ in found}
    # Who took it itself is about to publish, or to let go.
    return [] if any(taker in holders for _, taker in found) else [one for one, _ in found]


def argv(pid: int) -> tuple[str, ...]:
    """The command line of a PID, empty when it cannot be read."""
    return _system.argv(pid)


def cwd(pid: int) -> str:
    """The working directory of a PID, empty when it cannot be read."""
    return _system.cwd(pid)


def resident_bytes(pid: int) -> int:
    """Resident memory of a PID in bytes, 0 when it cannot be told."""
    return _system.resident_bytes(pid)


def user_of(pid: int) -> str:
    """The login name of the user who runs a PID, empty when it cannot be told."""
    number = _system.uid(pid)
    return "" if number is None else user_name(number)


def user_name(number: int) -> str:
    """The login name of a user id, or the number where it has none (as in containers)."""
    if number not in _users:
        import pwd

        try:
            _users[number] = pwd.getpwuid(number).pw_name
        except KeyError:
            _users[number] = str(number)
    return _users[number]


def path_of_descriptor(fd: int) -> str | None:
    """Where an open directory is now, even after a rename; None when it was deleted or cannot be told."""
    return _system.path_of_descriptor(fd)


def signal_name(number: int) -> str:
    """SIGINT for 2; the number where the system has no name for it."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
