"""Why a run died: by its record, its last words, the boot, and what the kernel tells of memory that ran out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from solorun.lastwords import error_line
from solorun.owner import Here
from solorun.record import RunRecord

Cause = str
"""completed, interrupted, error, signal, out of memory, power loss, vanished."""

_MEMORY = re.compile(r"MemoryError|OutOfMemory|out of memory", re.IGNORECASE)
_WORKER_KILLED = re.compile(r"signal: Killed|SIGKILL|exit ?code:? -9\b|signal 9\b", re.IGNORECASE)
_KILLED = re.compile(r"(?:out of memory|oom).*?killed process (\d+) \(([^)]*)\)", re.IGNORECASE)
_RESIDENT = re.compile(r"anon-rss:(\d+)kB")


def was_killed(signal: int | None, exit_code: int | None, words: tuple[str, ...]) -> bool:
    """Whether a process of the run died of SIGKILL: its own, a shell's child (status 137), or a data worker.

    Args:
        signal: that ended the command, None when none did.
        exit_code: of the command.
        words: its last words.
    """
    return signal == SIGKILL or exit_code == 128 + SIGKILL or any(_WORKER_KILLED.search(line) for line in words)


def cause_of(state: str, evidence: str, words: tuple[str, ...]) -> Cause:
    """Why a run ended whose end was seen.

    Args:
        state: as its record has it.
        evidence: what the kernel tells of memory that ran out; empty when it tells nothing.
        words: its last words.
    """
    if evidence or (state == "crashed" and _MEMORY.search(error_line(words))):
        return "out of memory"
    return {"completed": "completed", "interrupted": "interrupted", "killed": "signal", "crashed": "error"}.get(
        state, "vanished"
    )


def cause_of_vanishing(record: RunRecord, here: Here, evidence: str) -> tuple[Cause, str]:
    """Why a run vanished without a word, and that in words.

    Args:
        record: of the run, still in the state `running`.
        here: this machine and boot.
        evidence: what the kernel tells of memory that ran out for a process of it.
    """
    if record.boot and record.boot != here.boot:
        if record.host != here.host:  # what this kernel tells is of other processes with its numbers
            return "vanished", f"host {record.host}, where it ran, is gone"
        return "power loss", "the machine was restarted while it ran"
    if evidence:
        return "out of memory", f"kernel: {evidence}"
    return "vanished", "killed, and nothing was left that could say by what"


def outcome(record: RunRecord) -> str:
    """How a run ended, as a person says it in one line."""
    by = f" by {record.stopped_by}" if record.stopped_by else ""
    if record.cause == "out of memory":
        return f"out of memory ({record.why})" if record.why else "out of memory"
    if record.cause == "power loss":
        return f"power loss: {record.why}"
    if record.state == "interrupted":
        return f"interrupted{by}" + (f" ({record.why})" if record.why else "")
    if record.state == "crashed":
        return f"crashed: {record.why}" if record.why else f"crashed: exit status {record.exit_code}"
    if record.state == "killed":
        asked = f", after {record.stopped_by} asked it to stop" if record.stopped_by else ""
        return f"killed by {record.why or 'a signal'}{asked}"
    if record.state == "lost":
        asked = f"; {record.stopped_by} had asked it to stop" if record.stopped_by else ""
        return f"vanished: {record.why}{asked}" if record.why else f"vanished{asked}"
    return "still running" if record.state == "running" else record.state


@dataclass(slots=True)
class MemoryDeaths:
    """Looks now and then how many processes the kernel has killed for lack of memory, to tell afterwards about one.

    Args:
        root: where /proc, /sys and /dev are looked for.
        platform: `sys.platform`.
        every_s: seconds between looks.
        clock: monotonic seconds.
    """

    root: Path = Path("/")
    platform: str = sys.platform
    every_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _looks: list[dict[str, int]] = field(default_factory=list)
    _next: float = 0.0
    _pids: set[int] = field(default_factory=set)

    def look(self, pid: int) -> None:
        """Note the counters of this process's memory group and of the machine, unless that was done a moment ago."""
        self._pids.add(pid)
        if self.clock() < self._next:
            return
        self._next = self.clock() + self.every_s
        counts = {path: n for path in (*self._group_files(pid), "proc/vmstat") if (n := self._count(path)) is not None}
        # The look before the last is kept too: the last one may have come after the kill and before the end was seen.
        self._looks = [*self._looks[-1:], counts]

    def evidence(self, pids: Iterable[int], since: float, messages: Iterable[tuple[float, str]] | None = None) -> str:
        """What the kernel tells of these processes, or of their memory group; empty when it tells nothing.

        Args:
            pids: of the run, beside those that were looked at.
            since: when the run began, seconds since the epoch.
            messages: the kernel's, as (seconds since boot, text); None reads them.
        """
        found = list(self._messages() if messages is None else messages)
        named = kill_message(found, self._pids.union(pids), time.monotonic() - (time.time() - since) - 5)
        if named:
            return named
        for path, before in (self._looks[0] if self._looks else {}).items():
            now = self._count(path)
            if now is None or now <= before:
                continue
            if path != "proc/vmstat":
                return f"oom_kill of its memory group rose from {before} to {now}"
            if not found:  # where the kernel's messages can be read, they would have named it
                return f"oom_kill of the machine rose from {before} to {now} as it died"
        return ""

    def silence(self) -> str:
        """Why no evidence is no proof here; empty where the kernel does tell."""
        if self.platform == "darwin":
            return "macOS does not tell whether it was for lack of memory (jetsam)"
        return "" if any(self._looks) else "the kernel's counters of such kills cannot be read here"

    def _group_files(self, pid: int) -> Iterator[str]:
        try:
            lines = (self.root / f"proc/{pid}/cgroup").read_text().splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
            if controllers == "":
                yield f"sys/fs/cgroup{path}/memory.events"
            elif "memory" in controllers.split(","):
                yield f"sys/fs/cgroup/memory{path}/memory.oom_control"

    def _count(self, path: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            for line in (self.root / path).read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return None

    def _messages(self) -> Iterator[tuple[float, str]]:
        try:
            fd = os.open(self.root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for _ in range(100_000):
                try:
                    facts, _, text = os.read(fd, 8192).decode("utf-8", "replace").partition(";")
                except BrokenPipeError:  # the ring went on while we read: the next read goes on behind the gap
                    continue
                except OSError:
                    return
                if not text:
                    return
                with contextlib.suppress(ValueError, IndexError):
                    yield int(facts.split(",")[2]) / 1e6, text.partition("\n")[0]
        finally:
            os.close(fd)


def kill_message(messages: Iterable[tuple[float, str]], pids: Collection[int], since: float) -> str:
    """The kernel's own words on one of these processes; empty when it has none.

    Args:
        messages: seconds since boot, and text.
        pids: of the run.
        since: seconds since boot; what is older tells of another process with this PID.
    """
    for moment, text in messages:
        found = _KILLED.search(text)
        if found and int(found[1]) in pids and moment >= since:
            resident = _RESIDENT.search(text)
            size = f" with {int(resident[1]) / 1024:.0f} MB resident" if resident else ""
            return f"{text[: found.end()].strip()}{size}"
    return ""
