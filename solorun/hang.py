"""Hung or working? The verdict over two looks at the processes of a run that has made no progress. All pure.

A log that grows, and a process that answers `kill -0`, prove nothing: a loop that logs its retries does both. Certain
is what cannot go on by itself; strong, what neither computes nor is scheduled. What still computes stays in doubt: a
long step and an endless loop look alike from outside.
"""

from __future__ import annotations

from solorun.frozen import dataclass
from solorun.owner import Activity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_S = 0.5
"""Time between the two looks."""

_BUSY_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Looks:
    """Two looks at every process of a run.

    Args:
        trainer: PID of the training process.
        first: what each process had done, by PID; None where it could not be seen.
        second: the same, a window later.
        window_s: seconds between the two.
        background: the most that an idle trainer of ours shows in that time.
    """

    trainer: int
    first: Mapping[int, Activity | None]
    second: Mapping[int, Activity | None]
    window_s: float
    background: Activity


@dataclass(frozen=True, slots=True)
class Certain:
    """It cannot go on by itself."""

    proof: str


@dataclass(frozen=True, slots=True)
class Strong:
    """No progress beyond the limit, and nothing of it did anything between the looks."""

    proof: str


@dataclass(frozen=True, slots=True)
class Busy:
    """No progress beyond the limit, but it does something."""

    evidence: str


@dataclass(frozen=True, slots=True)
class Working:
    """Nothing is wrong with it."""


HangVerdict = Certain | Strong | Busy | Working


def judge_hang(looks: Looks, quiet_s: float, limit_s: float, silence: str) -> HangVerdict:
    """Decide whether a run hangs.

    Args:
        looks: at its processes.
        quiet_s: seconds since it last made progress.
        limit_s: seconds after which that is too long.
        silence: the same in words.
    """
    before, after = looks.first.get(looks.trainer), looks.second.get(looks.trainer)
    late = quiet_s > limit_s
    if before is None or after is None:
        return Busy(f"{silence}; its processes cannot be looked at") if late else Working()
    stuck = _stuck(looks, before, after)
    if stuck:
        return Certain(stuck)
    if not late:
        return Working()
    # Within its limit a run in state D is one that saves; beyond it, one whose disk does not answer.
    if before.state == after.state == "D" and not _moved(before, after, looks.background):
        return Certain(f"{silence}; PID {looks.trainer} waits for a disk or device (state D)")
    return _by_what_was_done(looks, silence)


def is_still(state: str) -> bool:
    """Whether a process in this state deserves a second look however lately it made progress."""
    return state in ("T", "t", "Z")


def _stuck(looks: Looks, before: Activity, after: Activity) -> str:
    """What keeps the trainer from ever going on by itself, empty when nothing does."""
    if before.state == after.state == "T":
        return suspended(looks.trainer, "T")
    if _moved(before, after, looks.background):  # a traced process is stopped for an instant at every system call
        return ""
    if before.state == after.state == "t":
        return suspended(looks.trainer, "t")
    if before.state == after.state == "Z":
        return f"the first thread of PID {looks.trainer} has ended (state Z), and the others do not move"
    return ""


def suspended(pid: int, state: str) -> str:
    """The proof for a process that was stopped by a signal, or is held by a debugger."""
    if state == "t":
        return f"PID {pid} is suspended by a debugger (state t)"
    return f"PID {pid} is suspended (state T); SIGCONT lets it go on"


def _by_what_was_done(looks: Looks, silence: str) -> HangVerdict:
    if looks.first.keys() != looks.second.keys():
        return Busy(f"{silence}, but processes of it come and go")
    cpu_s, switches, unseen = 0.0, 0, False
    for pid, before in looks.first.items():
        after = looks.second[pid]
        if before is None or after is None:
            unseen = True
        elif _moved(before, after, looks.background):
            cpu_s += abs(after.cpu_s - before.cpu_s)
            switches += abs(after.switches - before.switches)
    if cpu_s > _BUSY_SHARE * looks.window_s:
        return Busy(f"{silence}, still using CPU")
    if cpu_s or switches:
        return Busy(f"{silence}, still being scheduled")
    if unseen:
        return Busy(f"{silence}; not all of its processes can be looked at")
    return Strong(f"{silence}; no CPU time and no context switch in {looks.window_s:g} s")


def _moved(before: Activity, after: Activity, background: Activity) -> bool:
    # Threads that end take their numbers with them, so less is movement too.
    done_s, switched = abs(after.cpu_s - before.cpu_s), abs(after.switches - before.switches)
    return done_s > background.cpu_s + 1e-9 or switched > background.switches
