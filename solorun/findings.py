"""What a look before a start can find: one frozen kind each, with how bad it is, what it is, and what to do next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from solorun.disk import Room, is_full
from solorun.frozen import dataclass
from solorun.memory import Memory, describe
from solorun.neighbours import Orphan, Training
from solorun.process.table import Seen
from solorun.wording import ago, command_line, shell_word, size

Severity = Literal["blocks", "warns", "tells"]
"""Blocks: do not start. Warns: a start works, but look. Tells: something was done or is as it should be."""


_LONGEST = 72


@dataclass(frozen=True, slots=True)
class Who:
    """Another run, or another process, as a person is told of it.

    Args:
        pid: of its leading process.
        user: login name; empty when it cannot be told.
        argv: command line; empty when it cannot be seen from here.
        cwd: working directory; empty likewise.
        for_s: seconds since it began.
        resident: bytes of memory.
        processes: how many belong to it.
        directory: its results directory; empty when it is not known.
    """

    pid: int
    user: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""
    for_s: float = 0.0
    resident: int = 0
    processes: int = 1
    directory: str = ""

    def __str__(self) -> str:
        if not self.argv:
            return f"PID {self.pid}, which cannot be seen from here"
        facts = [f"{self.processes} processes"] if self.processes > 1 else []
        facts += [size(self.resident)] if self.resident else []
        facts += [f"for {ago(self.for_s)}"] if self.for_s else []
        where = f" into {self.directory}" if self.directory else f" in {self.cwd}" if self.cwd else ""
        name = f" of {self.user}" if self.user else ""
        return f"PID {self.pid}{name}: {_short(self.argv)}{where}" + (f" ({', '.join(facts)})" if facts else "")

    @property
    def ends_by(self) -> str:
        """How to ask it to end."""
        if self.directory:
            return f"solorun stop {shell_word(self.directory)}"
        return f"kill -INT {self.pid}"


def _short(argv: tuple[str, ...]) -> str:
    """A command line without the path of its program, cut to what is needed to know it again."""
    text = command_line((os.path.basename(argv[0]) or argv[0], *argv[1:]))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def who_runs(run: Training, directory: str = "") -> Who:
    """A training run as a person is told of it."""
    row = run.leader.row
    return Who(row.pid, run.leader.user, row.argv, run.leader.cwd, row.age_s, run.resident, len(run.members), directory)


def who_is(seen: Seen) -> Who:
    """A process as a person is told of it."""
    row = seen.row
    return Who(row.pid, seen.user, row.argv, seen.cwd, row.age_s, row.resident)


@dataclass(frozen=True, slots=True)
class LockInUse:
    """A run holds the directory, or what stands there needs attention first."""

    directory: Path
    state: str
    detail: str
    pid: int | None = None
    user: str | None = None
    severity: Severity = "blocks"
    following: str = ""
    """What to do, where the state alone does not tell."""

    @property
    def situation(self) -> str:
        """State, holder and detail."""
        holder = "" if self.pid is None else f", PID {self.pid}" + (f" of {self.user}" if self.user else "")
        return f"{self.state}{holder}: {self.detail}"

    @property
    def what(self) -> str:
        """One line."""
        return f"{self.directory}  {self.situation}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return self.following or f"solorun status {shell_word(self.directory)}"


@dataclass(frozen=True, slots=True)
class NotWritable:
    """No run holds the directory, but this user could not start one there."""

    directory: Path
    severity: Severity = "blocks"

    @property
    def what(self) -> str:
        """One line."""
        return f"{self.directory}  you may not write there"

    @property
    def next_step(self) -> str:
        """What to do."""
        return "ask its owner for write permission, or choose another results directory"


@dataclass(frozen=True, slots=True)
class StaleCleared:
    """A lock that was proven stale, and is cleared now."""

    directory: Path
    proof: str
    severity: Severity = "tells"

    @property
    def what(self) -> str:
        """One line."""
        return f"{self.directory}  stale lock cleared: {self.proof}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return ""


@dataclass(frozen=True, slots=True)
class OtherTraining:
    """Another training runs on this machine."""

    who: Who
    severity: Severity

    @property
    def what(self) -> str:
        """One line."""
        return str(self.who)

    @property
    def next_step(self) -> str:
        """What to do."""
        return f"wait for it, or ask it to end: {self.who.ends_by}"


@dataclass(frozen=True, slots=True)
class SameProgramElsewhere:
    """The program that this directory trains runs already, into another directory."""

    directory: Path
    who: Who
    severity: Severity

    @property
    def what(self) -> str:
        """One line."""
        return f"the program of {self.directory} runs elsewhere already: {self.who}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return f"one directory per model: continue there, or end it: {self.who.ends_by}"


@dataclass(frozen=True, slots=True)
class OrphanLeft:
    """A process that nobody watches over."""

    orphan: Orphan
    severity: Severity

    @property
    def who(self) -> Who:
        """It, for people."""
        return who_is(self.orphan.seen)

    @property
    def what(self) -> str:
        """One line."""
        return f"{self.who}: {self.orphan.why}"

    @property
    def next_step(self) -> str:
        """What to do."""
        ending = "end it" if self.orphan.proven else "if nobody needs it"
        return f"look: ps -fp {self.who.pid}   {ending}: kill {self.who.pid}"


@dataclass(frozen=True, slots=True)
class LowMemory:
    """Little memory is available."""

    memory: Memory
    severity: Severity = "warns"

    @property
    def what(self) -> str:
        """One line."""
        return f"memory is low: {describe(self.memory)}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return "end what is not needed, or start with a smaller batch"


@dataclass(frozen=True, slots=True)
class LowDisk:
    """Little room is left for checkpoints."""

    room: Room

    @property
    def severity(self) -> Severity:
        """Blocks where not even the next checkpoint fits."""
        return "blocks" if is_full(self.room) else "warns"

    @property
    def what(self) -> str:
        """One line."""
        room = self.room
        if room.inodes is not None and is_full(room) and room.free >= room.checkpoint:
            return f"{room.directory}: the disk has room for {room.inodes} more files only"
        newest = f"the newest checkpoint has {size(room.checkpoint)}" if room.checkpoint else "no checkpoint so far"
        return f"{room.directory}: {size(room.free)} free, and {newest}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return f"free some room: df -h {shell_word(self.room.directory)}"


@dataclass(frozen=True, slots=True)
class AcceleratorInUse:
    """Another process uses an accelerator that a start here would use too."""

    device: str
    who: Who
    memory: int | None
    severity: Severity

    @property
    def what(self) -> str:
        """One line."""
        held = f"{size(self.memory)} of " if self.memory else ""
        return f"{held}{self.device} is used by {self.who}"

    @property
    def next_step(self) -> str:
        """What to do."""
        if self.severity != "blocks":
            return ""
        if self.device.startswith("cuda"):
            return "wait, set CUDA_VISIBLE_DEVICES to another, or add --share-accelerator"
        return "wait for it, or add --share-accelerator"


@dataclass(frozen=True, slots=True)
class AcceleratorUnknown:
    """It could not be told whether accelerators are in use."""

    problem: str
    severity: Severity = "warns"

    @property
    def what(self) -> str:
        """One line."""
        return f"accelerators cannot be told: {self.problem}"

    @property
    def next_step(self) -> str:
        """What to do."""
        return "nvidia-smi"


Finding = (
    LockInUse
    | StaleCleared
    | OtherTraining
    | SameProgramElsewhere
    | OrphanLeft
    | LowMemory
    | LowDisk
    | NotWritable
    | AcceleratorInUse
    | AcceleratorUnknown
)

KINDS: dict[type[Finding], str] = {
    LockInUse: "lock in use",
    NotWritable: "not writable",
    StaleCleared: "stale lock cleared",
    OtherTraining: "other training",
    SameProgramElsewhere: "same program elsewhere",
    OrphanLeft: "orphan",
    LowMemory: "low memory",
    LowDisk: "low disk",
    AcceleratorInUse: "accelerator in use",
    AcceleratorUnknown: "accelerator unknown",
}


def as_facts(finding: Finding) -> dict[str, object]:
    """A finding as `solorun check --json` tells it; the keys are frozen."""
    who: Who | None = getattr(finding, "who", None)
    room: Room | None = getattr(finding, "room", None)
    directory = getattr(finding, "directory", room.directory if room else (who.directory or None) if who else None)
    return {
        "kind": KINDS[type(finding)],
        "severity": finding.severity,
        "what": finding.what,
        "next": finding.next_step,
        "directory": None if directory is None else str(directory),
        "pid": who.pid if who else getattr(finding, "pid", None),
        "user": (who.user or None) if who else getattr(finding, "user", None),
        "command": list(who.argv) if who else [],
    }
