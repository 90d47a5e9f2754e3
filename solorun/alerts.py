"""What to warn of while a run lives: a hang, and memory or disk that will not last. All pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solorun import disk, memory
from solorun.disk import FLOOR, Room
from solorun.frozen import dataclass, replace
from solorun.hang import Busy, Certain, HangVerdict, Strong
from solorun.memory import Memory, Shortfall
from solorun.progress import PAUSED
from solorun.settings import Settings
from solorun.wording import printable, size

_ENOUGH = 1.5
"""Memory is enough again above so many times the share that is low: else a warning would come and go."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of a living run.

    Args:
        pid: of the training process.
        verdict: whether it hangs.
        quiet_s: seconds since it was last seen to move.
        phase: what it does; empty for a run that reports nothing.
        step: steps done; None likewise.
        memory: of the machine; None where nothing tells.
        shortfall: a phase that will probably not fit into it.
        room: on its disk; None where nothing tells.
    """

    pid: int
    verdict: HangVerdict
    quiet_s: float
    phase: str
    step: int | None
    memory: Memory | None
    shortfall: Shortfall | None
    room: Room | None


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to warn of.

    Args:
        occasion: hang, memory or disk.
        text: one line for people.
        facts: the same for programs.
    """

    occasion: str
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Alerts:
    """What has changed since the last look.

    Args:
        new: to be told now.
        over: occasions that were told before and have passed.
    """

    new: tuple[Alert, ...]
    over: frozenset[str]


def alerts(seen: Observation, told: frozenset[str], settings: Settings) -> Alerts:
    """Decide what to warn of: each occasion once, until it has passed by a margin.

    Args:
        seen: at this look.
        told: occasions that were warned of and have not passed.
        settings: thresholds.
    """
    found = [alert for alert in (_hang(seen), _memory(seen, settings), _disk(seen, settings)) if alert is not None]
    new = tuple(alert for alert in found if alert.occasion not in told)
    gone = told - {alert.occasion for alert in found}
    return Alerts(new, frozenset(occasion for occasion in gone if _has_passed(occasion, seen, settings)))


def _hang(seen: Observation) -> Alert | None:
    at = "" if seen.step is None else f" at step {seen.step}"
    match seen.verdict:
        case Certain(proof):
            certainty, text = "certain", f"hangs{at}: {proof}"
        case Strong(proof):
            certainty, text = "strong", f"hangs{at}: {proof}"
        case Busy(evidence):
            certainty, text = "busy", f"may hang{at}: {evidence}"
        case _:
            return None
    facts = {"pid": seen.pid, "certainty": certainty, "quiet_s": round(seen.quiet_s, 1), "phase": seen.phase}
    return Alert("hang", printable(text), {**facts, "step": seen.step})


def _memory(seen: Observation, settings: Settings) -> Alert | None:
    if seen.memory is None:
        return None
    facts = {"available": seen.memory.available, "total": seen.memory.limit or seen.memory.total}
    if memory.is_low(seen.memory, settings):
        return Alert("memory", f"memory low: {memory.describe(seen.memory)}", facts)
    if seen.shortfall is None:
        return None
    facts |= {"growth": seen.shortfall.growth, "resident": seen.shortfall.resident}
    text = f"memory may not last: {printable(seen.shortfall.what)}"
    return Alert("memory", text, {**facts, "phase": seen.shortfall.phase})


def _disk(seen: Observation, settings: Settings) -> Alert | None:
    room = seen.room
    is_paused = seen.phase.startswith(PAUSED)  # also by a quota, which cannot be seen from here
    if room is None or not (is_paused or disk.is_low(room, settings)):
        return None
    needed = f"the newest has {size(room.checkpoint)}" if room.checkpoint else f"taken to need {size(FLOOR)} each"
    left = f"{size(room.free)} left"
    if room.inodes is not None and room.inodes < disk.INODES:
        left += f" and {room.inodes} files"
    text = f"room for {room.checkpoints:.1f} more checkpoints ({left}; {needed})"
    text = f"the run pauses at step {seen.step} until there is room: {text}" if is_paused else f"disk low: {text}"
    return Alert("disk", text, {"free": room.free, "checkpoint": room.checkpoint, "inodes": room.inodes})


def _has_passed(occasion: str, seen: Observation, settings: Settings) -> bool:
    """Whether something that is not bad any more is good by a margin, so that it does not come and go."""
    if occasion == "memory" and seen.memory is not None:
        wary = replace(settings, memory_low=_ENOUGH * settings.memory_low)
        return not memory.is_low(seen.memory, wary)
    if occasion == "disk" and seen.room is not None:
        wary = replace(settings, disk_low_checkpoints=settings.disk_low_checkpoints + 1)
        return not disk.is_low(seen.room, wary)
    return True
