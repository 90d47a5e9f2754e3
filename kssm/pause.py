"""What a run does on a full disk: it waits for room with everything in memory, says so, and hears a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from kssm.errors import NoRoom, Stopped
from kssm.report import Report

PHASE = "paused: disk full"
"""The guard's word for it begins with "paused": the time is no step's, and a watcher is told of it."""

_LOOK_S = 0.2
_SOON_S = 0.5
_RARELY_S = 60.0


class Clocked(Protocol):
    """What a pause needs from whoever guards the run."""

    @property
    def should_stop(self) -> bool:
        """Whether a stop was asked for."""

    @property
    def stop_reason(self) -> str:
        """Why."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Be in another phase for a while."""

    def beat(self) -> None:
        """The run is alive within a long phase."""

    def event(self, name: str, **facts: Any) -> None:
        """An event of the journal."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something that needs room.

    Args:
        attempt: does it; False where there was no room.
        needs: bytes.
    """

    attempt: Callable[[], bool]
    needs: int


@dataclass(frozen=True, slots=True)
class State:
    """The state that must not be lost.

    Args:
        step: of it.
        is_saved: whether it is on the disk.
    """

    step: int
    is_saved: Callable[[], bool]


class Pause:
    """Waits for room.

    Args:
        guard: told of phase, events and beats; asked whether to stop.
        report: lines for people.
        limit_s: how long to wait; 0 not to wait at all.
        hear: called at each look, for what must be noticed beside signals (a launcher that is gone).
    """

    def __init__(self, guard: Clocked, report: Report, limit_s: float, hear: Callable[[], None] = lambda: None) -> None:
        self._guard = guard
        self._report = report
        self._limit_s = limit_s
        self._hear = hear

    def through(self, tasks: Sequence[Task], room: Callable[[], int], state: State, error: NoRoom) -> None:
        """Do each task in turn, and wait for room where there is none; at once where there is enough.

        Args:
            tasks: what needs room; done in this order.
            room: bytes that are free now.
            state: what is at stake. While it is not saved a stop waits for room like everything else: to leave would
                lose it, and only a person may decide that, by a second Ctrl-C.
            error: what the disk said.

        Raises:
            Stopped: a stop was asked for, and the state is saved.
            NoRoom: the limit is over.
        """
        left = list(tasks)
        while left and left[0].attempt():
            left.pop(0)
        if not left:
            return
        if self._guard.should_stop and state.is_saved():
            raise Stopped
        if self._limit_s <= 0:
            raise _given_up(error, state, self._limit_s)
        began = time.monotonic()
        free = room()
        self._report.say(f"PAUSED: {self._situation(error, left[0], free, state)}")
        self._guard.event("paused", step=state.step, needed=left[0].needs, free=free, saved=state.is_saved())
        with self._guard.phase(PHASE):
            self._wait(left, room, state, error)
        lasted = time.monotonic() - began
        self._guard.event("went on", step=state.step, seconds=round(lasted, 1))
        self._report.say(f"there is room again after {span(lasted)}: the run goes on")
        self._report.resume_clock()

    def look(self, state: State) -> None:
        """Be seen to live, and hear; for what takes long while it is waited.

        Raises:
            Stopped: a stop was asked for, and the state is saved.
        """
        self._guard.beat()
        self._hear()
        if self._guard.should_stop and state.is_saved():
            raise Stopped

    def _wait(self, left: list[Task], room: Callable[[], int], state: State, error: NoRoom) -> None:
        began = tried = time.monotonic()
        tries, told = 0, False
        while left:
            time.sleep(_LOOK_S)
            self.look(state)
            if self._guard.should_stop and not told:
                told = True
                self._report.say(_unsaved_at_stop(self._guard.stop_reason, state))
            now, free = time.monotonic(), room()
            tries = tries if free >= left[0].needs else 0
            if is_due(now - tried, tries, free, left[0].needs):
                if left[0].attempt():
                    left.pop(0)
                    tries, tried = 0, 0.0
                else:
                    tries, tried = tries + 1, time.monotonic()
            elif now - began > self._limit_s:
                raise _given_up(error, state, self._limit_s)

    def _situation(self, error: NoRoom, task: Task, free: int, state: State) -> str:
        kept = (
            f"the state at step {state.step} is saved"
            if state.is_saved()
            else f"the state at step {state.step} waits in memory to be saved"
        )
        return (
            f"{error.what}. {megabytes(task.needs)} are needed, {megabytes(free)} are free; {kept}. "
            f"The run goes on when there is room, for {span(self._limit_s)} at most (--disk-wait); {error.next_step}"
        )


def is_due(waited_s: float, tries: int, free: int, needed: int) -> bool:
    """Whether to try again: soon after room is seen, rarely where a quota, which is not seen, may have grown.

    A save that is tried on a full disk fills its last bytes, which other programs may need.

    Args:
        waited_s: seconds since the last attempt.
        tries: attempts since room was first seen.
        free: bytes that are free.
        needed: bytes that are needed.
    """
    wait = min(_SOON_S * 2**tries, _RARELY_S) if free >= needed else _RARELY_S
    return waited_s >= wait


def _unsaved_at_stop(reason: str, state: State) -> str:
    return (
        f"WARNING: a stop was asked for ({reason}), and the state at step {state.step} is not saved: it is waiting for "
        "room. A second Ctrl-C leaves at once, and loses it"
    )


def _given_up(error: NoRoom, state: State, limit_s: float) -> NoRoom:
    waited = f"; no room came within {span(limit_s)} (--disk-wait)" if limit_s > 0 else ""
    kept = f"; the state at step {state.step} is saved" if state.is_saved() else ""
    return NoRoom(f"{error.what}{waited}{kept}", f"{error.next_step}; then start again to go on")


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:,.1f} MB"


def span(seconds: float) -> str:
    """A duration as a person reads it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
