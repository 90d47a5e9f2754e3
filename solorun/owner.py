"""Who holds a results directory: identities, the label, the record, and the verdict over them. All pure.

A process is never a bare PID: PIDs are reused, mean nothing on another host or in another PID namespace,
and nothing after a reboot.
"""

from __future__ import annotations

from solorun.frozen import dataclass
from solorun.readjson import is_moment, is_whole, read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PID_MAX = 2**22
"""The largest PID that Linux gives (macOS stops at 99,998)."""

_LONGEST_COMMAND = 8000
"""Characters of a command line that are written down; each takes at most twelve bytes in JSON."""

RECYCLED_AFTER_S = 2.0
"""A process born later than this after a label was written cannot have written it."""


@dataclass(frozen=True, slots=True)
class Here:
    """The place from which PIDs are seen.

    Args:
        host: node name, for people.
        machine: identity of the machine, the same after a reboot.
        boot: identity of this boot.
        namespace: identity of the PID namespace; empty where there is only one.
    """

    host: str
    machine: str
    boot: str
    namespace: str


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, told apart from every other that ever was.

    Args:
        here: where the PID means something.
        pid: its number.
        started: the kernel's start token (clock ticks since boot on Linux, microseconds on macOS).
    """

    here: Here
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that holds a directory, as `training.owner.json` tells it.

    Args:
        run_id: names the run in the lock, the record, every checkpoint and the metrics; empty for an old-style label.
        process: the training process.
        supervisor: the guard that started it, if one did.
        adopted: whether the training process took the lock over from its supervisor (it answers signals itself).
        user: login name.
        argv: command line.
        cwd: working directory.
        since: seconds since the epoch.
        directory: absolute path of the results directory when the lock was taken.
        directory_inode: its inode; a copied directory brings a record that is not about it.
        launcher: what started the training process beside others of the same run (torchrun); None where nothing did.
    """

    run_id: str
    process: ProcessId
    supervisor: ProcessId | None
    adopted: bool
    user: str
    argv: tuple[str, ...]
    cwd: str
    since: float
    directory: str
    directory_inode: int
    launcher: ProcessId | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """No such process, or only its zombie."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A live process.

    Args:
        started: start token; None where it cannot be read (hidden /proc).
        born: seconds since the epoch, within a second; None likewise.
        state: the kernel's letter (R, S, D, T ...); "?" where unknown.
    """

    started: int | None
    born: float | None
    state: str


Sighting = Gone | Alive


@dataclass(frozen=True, slots=True)
class Activity:
    """What a process has done so far; two of them, some time apart, tell whether it does anything.

    Args:
        state: the kernel's letter of its first thread (R, S, D, T ...).
        cpu_s: seconds of CPU time, all threads together.
        switches: context switches, voluntary or not, all threads together.
    """

    state: str
    cpu_s: float
    switches: int


@dataclass(frozen=True, slots=True)
class Label:
    """What stands at `training.lock`.

    Args:
        pid: the PID it names; None when it is empty or garbage.
        text: its first bytes as found.
        inode: which file this was; 0 when it is not a plain file.
        written: modification time, seconds since the epoch.
    """

    pid: int | None
    text: bytes
    inode: int
    written: float


@dataclass(frozen=True, slots=True)
class Free:
    """Nobody holds the directory and nothing was left."""


@dataclass(frozen=True, slots=True)
class Held:
    """A live process holds it. `owner` is None for an old-style label, and while a new holder is still publishing."""

    pid: int | None
    owner: Owner | None
    proof: str


@dataclass(frozen=True, slots=True)
class Stale:
    """What stands there is proven to be left over."""

    label: Label | None
    proof: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Its owner lives where PIDs cannot be checked from here. Unreachable is never dead."""

    owner: Owner
    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It cannot be told; treated as held.

    Args:
        reason: why.
        passing: the system failed to read it this time, which says nothing about what stands there.
    """

    reason: str
    passing: bool = False


Verdict = Free | Held | Stale | Foreign | Unknown


def parse_label(text: bytes) -> int | None:
    """The PID of a label: ASCII digits, one line, 1..PID_MAX. Anything else is None."""
    line = text.removesuffix(b"\n")
    if not line.isdigit() or len(line) > 7:
        return None
    pid = int(line)
    return pid if 1 <= pid <= PID_MAX else None


def judge(
    label: Label | None, owner: Owner | None, sighting: Sighting, here: Here, *, is_copy: bool = False
) -> Verdict:
    """Decide who holds a directory.

    Args:
        label: what stands at `training.lock`, None when nothing does.
        owner: the record beside it, None when there is none that can be read.
        sighting: of the label's PID, or of the record's where there is no label with a PID.
        here: where the sighting was made.
        is_copy: the record tells of another directory that still exists: this one was copied from it.
    """
    if owner is not None and not is_copy and (label is None or label.pid in (None, owner.process.pid)):
        return _judge_record(label, owner, sighting, here)
    if label is None:
        return Stale(None, "the record was copied from another directory") if owner else Free()
    if is_copy and owner is not None and label.pid == owner.process.pid:
        return Stale(label, f"copied from {owner.directory!r}, which run {owner.run_id} owns")
    return _judge_bare_label(label, sighting)


def _judge_record(label: Label | None, owner: Owner, sighting: Sighting, here: Here) -> Verdict:
    process = owner.process
    if process.here.boot != here.boot:
        if process.here.machine != here.machine:
            return Foreign(
                owner, f"its run was started on host {process.here.host!r}, and its PID cannot be checked from here"
            )
        return Stale(label, f"the machine was restarted since PID {process.pid} took it")
    if process.here.namespace != here.namespace:
        return Foreign(owner, f"its run was started in another PID namespace (container) of host {process.here.host!r}")
    if isinstance(sighting, Gone):
        return Stale(label, f"PID {process.pid} is dead")
    if sighting.started is None:
        return Held(process.pid, owner, f"PID {process.pid} is alive (its start time cannot be read)")
    if sighting.started != process.started:
        return Stale(label, f"PID {process.pid} now belongs to another process, started later")
    return Held(process.pid, owner, f"PID {process.pid} is alive, with the start time of the record")


def _judge_bare_label(label: Label, sighting: Sighting) -> Verdict:
    if label.pid is None:
        return Stale(
            label, "the label is empty" if not label.text.strip() else f"the label {label.text[:24]!r} names no process"
        )
    if isinstance(sighting, Gone):
        return Stale(label, f"PID {label.pid} is dead")
    if sighting.born is not None and sighting.born > label.written + RECYCLED_AFTER_S:
        later = sighting.born - label.written
        return Stale(label, f"PID {label.pid} now belongs to a process born {later:.0f} s after the label was written")
    return Held(label.pid, None, f"PID {label.pid} is alive")


def told(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A command line as it is written down: whole, or its beginning and how many words are left out.

    A thousand data files make a command of megabytes; a record of that size would be read by nobody.
    """
    room, words = _LONGEST_COMMAND, 0
    for word in argv:
        room -= len(word) + 4
        if room < 0:
            break
        words += 1
    left = len(argv) - words
    return argv if not left else (*argv[:words], f"... and {left} more words")


def encode_owner(owner: Owner) -> bytes:
    """The record as it stands on disk: one JSON object and a newline."""
    import json

    facts = {
        "schema": 1,
        "run_id": owner.run_id,
        "process": _process_facts(owner.process),
        "supervisor": None if owner.supervisor is None else _process_facts(owner.supervisor),
        "adopted": owner.adopted,
        "user": owner.user,
        "argv": owner.argv,
        "cwd": owner.cwd,
        "since": owner.since,
        "directory": owner.directory,
        "directory_inode": owner.directory_inode,
    }
    if owner.launcher is not None:
        facts["launcher"] = _process_facts(owner.launcher)
    return json.dumps(facts).encode() + b"\n"


def _process_facts(process: ProcessId) -> dict[str, Any]:
    place = process.here
    here = {"host": place.host, "machine": place.machine, "boot": place.boot, "namespace": place.namespace}
    return {"here": here, "pid": process.pid, "started": process.started}


def decode_owner(data: bytes) -> Owner:
    """Read a record. Unknown keys are tolerated, ranges are checked.

    Raises:
        ValueError: it is torn, of another shape, or out of range.
    """
    try:
        raw = read_json(data)
        owner = Owner(
            run_id=_text(raw["run_id"]),
            process=_process(raw["process"]),
            supervisor=None if raw["supervisor"] is None else _process(raw["supervisor"]),
            adopted=_truth(raw["adopted"]),
            user=_text(raw["user"]),
            argv=tuple(_text(word) for word in _list(raw["argv"])),
            cwd=_text(raw["cwd"]),
            since=_moment(raw["since"]),
            directory=_text(raw["directory"]),
            directory_inode=_whole(raw["directory_inode"]),
            launcher=_process(raw["launcher"]) if raw.get("launcher") is not None else None,
        )
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not an owner record: {error!r}") from None
    return owner


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    value.encode("utf-8", "surrogateescape")  # half a character can be compared with no file name or environment
    return value


def _moment(value: Any) -> float:
    if not is_moment(value):
        raise ValueError(f"since {value!r:.40} is no time")
    return float(value)


def _whole(value: Any) -> int:
    if not is_whole(value):
        raise ValueError(f"{value!r:.40} is no number of a process or a file")
    return int(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false expected")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):  # the letters of a text would pass for words
        raise TypeError("list expected")
    return value


def _process(raw: Any) -> ProcessId:
    place = raw["here"]
    here = Here(*(_text(place[key]) for key in ("host", "machine", "boot", "namespace")))
    pid, started = _whole(raw["pid"]), _whole(raw["started"])
    if not 1 <= pid <= PID_MAX:
        raise ValueError(f"PID {pid} is out of range")
    return ProcessId(here, pid, started)
