"""The states that a results directory can be in, and the verdict that names one from evidence. All pure."""

from __future__ import annotations

from solorun.frozen import dataclass
from solorun.hang import Busy, Certain, HangVerdict, Looks, Strong, is_still, judge_hang, suspended
from solorun.owner import Alive, Foreign, Held, Label, Owner, ProcessId, Sighting, Stale, Unknown, Verdict
from solorun.progress import Progress
from solorun.record import RunRecord
from solorun.rundir import CheckpointFile
from solorun.settings import Settings
from solorun.wording import ago, not_yours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from solorun.waiting import Waiter


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody trains here. `last` is the last run, if one left a record."""

    last: RunRecord | None


@dataclass(frozen=True, slots=True)
class Running:
    """A run is alive and moving."""

    owner: Owner
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Silent:
    """A run is alive but has made no progress for longer than is usual for it; it may be in a long step."""

    owner: Owner
    progress: Progress | None
    for_s: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Hung:
    """A run is alive and certain not to move by itself."""

    owner: Owner
    progress: Progress | None
    proof: str


@dataclass(frozen=True, slots=True)
class Left:
    """A lock was left behind; its owner is proven dead (state `stale`)."""

    label: Label | None
    proof: str
    kept_by: str = ""
    """The user who may remove it, where the caller may not."""


@dataclass(frozen=True, slots=True)
class Orphaned:
    """The run is over, but processes of it live and may still write."""

    survivors: tuple[ProcessId, ...]


@dataclass(frozen=True, slots=True)
class Contested:
    """Two live processes both claim the directory."""

    claimants: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Its run belongs to another host or PID namespace (state `foreign`). Unreachable is never dead."""

    owner: Owner
    seen_s: float | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """It cannot be looked at, or cannot be told."""

    path: str
    reason: str


RunState = Idle | Running | Silent | Hung | Left | Orphaned | Contested | Elsewhere | Unreadable

NAMES: Mapping[type[RunState], str] = {
    Idle: "idle", Running: "running", Silent: "silent", Hung: "hung", Left: "stale", Orphaned: "orphaned",
    Contested: "contested", Elsewhere: "foreign", Unreadable: "unreadable",
}  # fmt: skip
PROBLEMS = frozenset({"silent", "hung", "stale", "orphaned", "contested", "unreadable"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen in one directory.

    Args:
        directory: its path.
        verdict: who holds it, by label and record.
        owner: the record, or what the process table tells of an old-style owner.
        label: what stands at `training.lock`.
        label_alive: whether the label's PID lives.
        sighting: of the owner's process.
        survivors: live processes of a run that is over.
        progress: the heartbeat, whoever wrote it.
        record: the last run.
        log_age_s: seconds since the log was last written; None without a log.
        looks: two looks at the processes of a run that seems not to move; None while nobody took them.
        kept_by: the user who may remove what is left of a lock, where the caller may not; empty where he may.
        checkpoint: the newest one by step, whether it loads or not; None without one.
        waiting: starts that queue for it.
    """

    directory: str
    verdict: Verdict
    owner: Owner | None
    label: Label | None
    label_alive: bool
    sighting: Sighting
    survivors: tuple[ProcessId, ...]
    progress: Progress | None
    record: RunRecord | None
    log_age_s: float | None
    looks: Looks | None = None
    kept_by: str = ""
    checkpoint: CheckpointFile | None = None
    waiting: tuple[Waiter, ...] = ()


def classify(evidence: Evidence, now: float, settings: Settings) -> RunState:
    """Name the state that the evidence shows.

    Args:
        evidence: of one directory.
        now: seconds since the epoch.
        settings: thresholds.
    """
    verdict = evidence.verdict
    if isinstance(verdict, Foreign):
        progress = evidence.progress
        return Elsewhere(verdict.owner, max(0.0, now - progress.time) if progress else None)
    if isinstance(verdict, Unknown):
        return Unreadable(evidence.directory, verdict.reason)
    if isinstance(verdict, Held):
        return _classify_live(evidence, now, settings)
    if evidence.survivors:
        return Orphaned(evidence.survivors)
    if isinstance(verdict, Stale):
        return Left(verdict.label, verdict.proof, evidence.kept_by)
    return Idle(evidence.record)


def _classify_live(evidence: Evidence, now: float, settings: Settings) -> RunState:
    owner, label = evidence.owner, evidence.label
    if owner is None:
        return Unreadable(evidence.directory, "its owner vanished while it was looked at")
    if label is not None and label.pid not in (None, owner.process.pid) and evidence.label_alive:
        return Contested((owner.process.pid, label.pid or 0))
    progress = _own_progress(evidence, owner)
    match _hang_verdict(evidence, owner, now, settings):
        case Certain(proof) | Strong(proof):
            return Hung(owner, progress, proof)
        case Busy(text):
            return Silent(owner, progress, quiet_for(progress, evidence.log_age_s, owner.since, now), text)
        case _:
            return Running(owner, progress)


def _own_progress(evidence: Evidence, owner: Owner) -> Progress | None:
    return evidence.progress if evidence.progress and evidence.progress.run_id == owner.run_id else None


def _hang_verdict(evidence: Evidence, owner: Owner, now: float, settings: Settings) -> HangVerdict | None:
    progress = _own_progress(evidence, owner)
    quiet, limit = quiet_for(progress, evidence.log_age_s, owner.since, now), silence_limit(progress, settings)
    silence = silence_in_words(progress, quiet, limit)
    if evidence.looks is not None:
        return judge_hang(evidence.looks, quiet, limit, silence)
    if isinstance(evidence.sighting, Alive) and evidence.sighting.state in ("T", "t"):
        return Certain(suspended(owner.process.pid, evidence.sighting.state))
    return Busy(silence) if quiet > limit else None


def silence_in_words(progress: Progress | None, quiet_s: float, limit_s: float) -> str:
    """That a run has been quiet for too long, as a person reads it."""
    what = f"no progress in phase {progress.phase}" if progress else "the log has not grown"
    return f"{what} for {ago(quiet_s)} (usual: under {ago(limit_s)})"


def needs_second_look(evidence: Evidence, now: float, settings: Settings) -> bool:
    """Whether only a second look at its processes can tell a run that hangs from one that works.

    Args:
        evidence: of one directory.
        now: seconds since the epoch.
        settings: thresholds.
    """
    owner = evidence.owner
    if owner is None or not isinstance(evidence.verdict, Held):
        return False
    if isinstance(evidence.sighting, Alive) and is_still(evidence.sighting.state):
        return True
    progress = _own_progress(evidence, owner)
    return quiet_for(progress, evidence.log_age_s, owner.since, now) > silence_limit(progress, settings)


def quiet_for(progress: Progress | None, log_age_s: float | None, since: float, now: float) -> float:
    """Seconds since the run last moved: by its heartbeat if it has one, else by its log, else since its start."""
    if progress is not None:
        return max(0.0, now - progress.time)
    running = max(0.0, now - since)
    return running if log_age_s is None else min(running, max(0.0, log_age_s))


def silence_limit(progress: Progress | None, settings: Settings) -> float:
    """Seconds after which this run, in this phase, has been quiet for too long."""
    if progress is None or progress.longest_s <= 0:
        return settings.silent_unknown_s
    usual = settings.silent_factor * progress.longest_s
    return min(max(settings.silent_floor_s, usual), settings.silent_ceiling_s)


def how_ended(record: RunRecord) -> str:
    """How a run that is over ended; lost, when nothing of it was left to write that down."""
    return "lost" if record.state == "running" else record.state


def detail(state: RunState) -> str:
    """One line on why the state is named so."""
    match state:
        case Left(proof=proof, kept_by=user) if user:
            return not_yours(proof, user)
        case Silent(evidence=text) | Hung(proof=text) | Left(proof=text) | Unreadable(reason=text):
            return text
        case Orphaned(survivors):
            pids = ", ".join(str(p.pid) for p in survivors)
            who = f"PID {pids} of it lives" if len(survivors) == 1 else f"PIDs {pids} of it live"
            return f"its run is over, but {who}"
        case Contested(claimants):
            return f"PIDs {' and '.join(map(str, claimants))} both claim it"
        case Elsewhere(owner, seen):
            age = "" if seen is None else f", last step {seen:.0f} s ago"
            return f"started on host {owner.process.here.host}{age}; it cannot be checked from here"
        case Running(progress=progress):
            return progress.phase if progress else "reports no steps"
        case Idle(last):
            return f"last run {how_ended(last)}" if last else "no run yet"
