"""A refusal in plain words: who holds a directory, since when, at which step, the evidence, and what to type next."""

from __future__ import annotations

import time
from pathlib import Path

from solorun import lock, process, status
from solorun.errors import Held, Refused, SolorunError
from solorun.owner import Foreign, Owner, Unknown, Verdict
from solorun.owner import Held as HeldBy
from solorun.runstate import Evidence, Unreadable
from solorun.wording import ago, command_line, shell_word

_PUBLISHING_S = 0.15


def refusal(path: Path, found: lock.Refusal | Verdict, now: float) -> SolorunError:
    """A refusal in plain words: who holds it, since when, at which step, the evidence, and what to type next."""
    quoted = shell_word(path)
    if isinstance(found, Unknown):
        return Refused(f"{str(path)!r}: {found.reason}", f"look at it: ls -la {quoted}")
    if isinstance(found, Foreign):
        host = found.owner.process.here.host
        return Refused(
            f"{str(path)!r} belongs to another place: {found.reason}",
            f"ask on host {host}: solorun status {quoted}\n"
            f"        gone for good? solorun recover {quoted} --gone-host {shell_word(host)}",
            _who(found.owner, now),
        )
    if isinstance(found, lock.Survivors):
        pids = ", ".join(str(p.pid) for p in found.processes)
        seen = tuple(f"PID {p.pid}: {command_line(process.argv(p.pid))}" for p in found.processes[:8])
        return Held(
            f"{str(path)!r}: run {found.run_id} is over, but processes of it live (PID {pids}) and may still write",
            f"end them: solorun stop {quoted}",
            seen,
        )
    return _held(path, quoted, found if isinstance(found, HeldBy) else None, now)


def _held(path: Path, quoted: str, found: HeldBy | None, now: float) -> SolorunError:
    evidence = _wait_for_owner(path, now)
    if evidence and isinstance(evidence.verdict, Foreign):  # on a shared file system that carries locks across hosts
        return refusal(path, evidence.verdict, now)
    owner = evidence.owner if evidence else None
    if owner is None:
        pid = found.pid if found else None
        who = f"PID {pid}" if pid else _holder(path)
        return Held(f"{str(path)!r} is held by {who}", f"look again in a moment: solorun status {quoted}")
    lines = list(_who(owner, now))
    progress = evidence.progress if evidence else None
    if progress and progress.run_id == owner.run_id:
        total = f" of {progress.total}" if progress.total else ""
        lines.append(f"at step {progress.step}{total}, {progress.phase}, {max(0.0, now - progress.time):.0f} s ago")
    if evidence and isinstance(evidence.verdict, HeldBy):
        lines.append(f"evidence: {evidence.verdict.proof}")
    return Held(
        f"{str(path)!r} is held by PID {owner.process.pid} of {owner.user or 'an unknown user'}",
        # One command a line: a terminal must not break one in two.
        f"watch it: solorun logs -f {quoted}\n        end it:   solorun stop {quoted}",
        tuple(lines),
    )


def _who(owner: Owner, now: float) -> tuple[str, ...]:
    run = f"run {owner.run_id}, " if owner.run_id else "an old-style trainer, "
    return (
        f"{run}on host {owner.process.here.host}, for {ago(now - owner.since)}",
        f"command: {command_line(owner.argv)}",
    )


def _wait_for_owner(path: Path, now: float) -> Evidence | None:
    """The holder's record; a holder that has the lock but not yet the record gets a moment to write it."""
    deadline = time.monotonic() + _PUBLISHING_S
    while True:
        evidence = status.gather(path, now, carriers=lambda _run: (), heirs=lambda _fd: ())
        if isinstance(evidence, Unreadable):
            return None
        if isinstance(evidence.verdict, HeldBy | Foreign) or time.monotonic() > deadline:
            return evidence
        time.sleep(0.01)


def _holder(path: Path) -> str:
    """Who has the directory open, when no record tells."""
    try:
        facts = path.stat()
    except OSError:
        return "another process"
    found = process.holders(facts.st_dev, facts.st_ino)
    return f"PID {', '.join(str(p.pid) for p in found)}" if found else "another process"
