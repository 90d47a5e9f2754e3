"""The heartbeat: where a run is, written by the run at every step, read by a watcher at any moment.

One line of fixed size, overwritten in place with a checksum at its end: a reader that meets a half-written line
sees that and reads again. Written with `pwrite`, not through a memory map: a file that somebody truncates would
kill a mapped writer with SIGBUS.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib

from solorun.frozen import dataclass
from solorun.readjson import is_moment
from solorun.rundir import PROGRESS

SIZE = 256
PAUSED = "paused"
"""How a phase begins in which a run waits for something: its time is no step's."""

_RECENT = 50
_FADE = 0.98
_LONGEST_WORD = 24
_OFTEN_S = 0.1
_AGAIN_S = (0.0, 0.001, 0.002, 0.004)
"""Pauses between looks at a line that is half the old and half the new one: its writer was interrupted in mid-write."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Args:
        run_id: which run.
        phase: starting, tokenizing, training, evaluating, sampling, saving, stopping, paused: disk full ...
        step: steps done.
        total: steps wanted, 0 when not known.
        time: of the last beat, seconds since the epoch.
        phase_since: when this phase began, likewise.
        longest_s: slowest recent step (or duration) of this phase in seconds, 0 when not known.
        pace_s: recent wall time per step in seconds, evaluations and saves included, 0 when not known.
        first_step: step at which the run began.
    """

    run_id: str
    phase: str
    step: int
    total: int
    time: float
    phase_since: float
    longest_s: float
    pace_s: float
    first_step: int

    @property
    def rate(self) -> float | None:
        """Steps per second."""
        return 1 / self.pace_s if self.pace_s > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step at the recent pace."""
        return max(self.total - self.step, 0) * self.pace_s if self.pace_s > 0 and self.total else None


class Heartbeat:
    """The writing end. One process at a time: `claim` keeps a second trainer of the same run out.

    Args:
        directory: descriptor of the results directory.
        run_id: which run.
    """

    def __init__(self, directory: int, run_id: str) -> None:
        self._fd = os.open(PROGRESS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=directory)
        self.run_id = run_id
        self.phase = "starting"
        self.step = self.total = self.first_step = 0
        self._since = time.time()
        self._last_step_at = 0.0
        self._longest: dict[str, float] = {}
        self._slowest = 0.0
        self._pace = 0.0
        self._paced = 0
        self._settled_at = 0.0
        self._settle_head()

    def claim(self) -> bool:
        """Become the only writer. False when another process of this run already is (two trainers, one guard)."""
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without flock: the directory's guard still stands
            pass
        os.ftruncate(self._fd, 0)
        self._write(time.time())
        return True

    def advance(self, step: int, total: int) -> None:
        """Report a finished step. Costs microseconds; a full disk costs the beat, never the run."""
        now = time.time()  # what follows is one job in one place: calls and names cost more than the arithmetic
        last = self._last_step_at
        self._last_step_at, self.step, self.total = now, step, total
        if not last or self.phase == "starting":
            self._first_advance(step, now)
        if last:
            paced = self._paced
            if paced < _RECENT:
                self._paced = paced = paced + 1
            self._pace += (now - last - self._pace) / paced
            since = self._since
            took = now - (max(last, since))
            faded = self._slowest * _FADE
            self._slowest = max(took, faded)
        if now - self._settled_at >= _OFTEN_S or now < self._settled_at:
            self._settle_pace(now)
        self._write(now)

    def _first_advance(self, step: int, now: float) -> None:
        if not self._paced:
            self.first_step = step
        if self.phase == "starting":  # a trainer that names no phases trains once it reports steps
            self.phase, self._since = "training", now
        self._settle_head()

    def begin(self, phase: str) -> None:
        """Enter a phase."""
        self._longest[self.phase] = self._slowest
        self.phase, self._since, self._slowest = phase, time.time(), self._longest.get(phase, 0.0)
        self._settle_head()
        self._write(self._since)

    def finish(self, phase: str, lasted_s: float) -> None:
        """Remember how long a phase lasted, so that a watcher knows what is usual for it."""
        known = self._slowest if phase == self.phase else self._longest.get(phase, 0.0)
        longest = max(lasted_s, known * _FADE)
        if phase == self.phase:
            self._slowest = longest
        self._longest[phase] = longest
        if self._last_step_at and phase.startswith(PAUSED):
            # Else the pace would be hours a step after a night on a full disk.
            self._last_step_at += lasted_s

    def beat(self) -> None:
        """Say that the run is alive within a long phase."""
        now = time.time()
        self._settle_pace(now)
        self._write(now)

    def close(self) -> None:
        """Close the file; the last line stays, later beats are lost."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a network disk tells of a beat that it lost
                os.close(self._fd)
        self._fd = -1  # the number may soon be another file's

    def _settle_head(self) -> None:
        """The part of the line that stays the same from step to step, put together once."""
        run_id, phase = self.run_id.encode(), _word(self.phase)
        self._head = b"1 %s %s %.3f %d " % (run_id, phase, self._since, self.first_step)
        self._settle_pace(time.time())

    def _settle_pace(self, now: float) -> None:
        """The end of the line, put together as often as a person can read it: it is a sixth of a step's cost."""
        self._settled_at = now
        self._tail = b" %.3f %.6f" % (self._slowest, self._pace)

    def _write(self, now: float) -> None:
        line = b"%s%d %d %.3f%s" % (self._head, self.step, self.total, now, self._tail)
        line = line[: SIZE - 10].ljust(SIZE - 10)
        try:
            os.pwrite(self._fd, line + b" %08x\n" % zlib.crc32(line), 0)
        except OSError:
            return


def _word(phase: str) -> bytes:
    """A phase as one word that fits the line, whatever a trainer calls it."""
    return "-".join(phase.split())[:_LONGEST_WORD].encode("utf-8", "replace") or b"-"


def read_progress(directory: int) -> Progress | None:
    """The last beat; None when there is none, or none that is whole.

    Args:
        directory: descriptor of the results directory.
    """
    try:
        fd = os.open(PROGRESS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        for pause_s in _AGAIN_S:
            line = os.pread(fd, SIZE, 0)
            found = decode(line)
            if found is not None or len(line) != SIZE:
                return found
            time.sleep(pause_s)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def decode(data: bytes) -> Progress | None:
    """Read a line; None when it is torn or of another form."""
    if len(data) != SIZE or data[SIZE - 9 : SIZE - 1] != b"%08x" % zlib.crc32(data[: SIZE - 10]):
        return None
    try:
        _, run_id, phase, since, first, step, total, beat, longest, pace = data[: SIZE - 10].decode().split()
        moments = float(beat), float(since), float(longest), float(pace)
        if not all(map(is_moment, moments)):  # a checksum says that the line is whole, not that its writer was sound
            return None
        return Progress(run_id, phase, int(step), int(total), *moments, int(first))
    except (ValueError, UnicodeDecodeError):
        return None
