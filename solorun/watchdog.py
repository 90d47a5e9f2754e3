"""What a supervisor watches while its run lives: a hang, and memory or disk that will not last. And how it tells.

Every warning is a line in the log, an event in the journal, and a notice to whom it concerns. Nothing here ends a run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solorun import process
from solorun.claim import Claim
from solorun.logs import LogFile
from solorun.owner import Alive, Owner
from solorun.progress import Progress, read_progress
from solorun.record import RunRecord, State, journal, read_record
from solorun.rundir import LOG, checkpoint_files
from solorun.runstate import silence_limit
from solorun.settings import NotifyEntry, Settings
from solorun.wording import ago, printable, size

if TYPE_CHECKING:
    import subprocess

_PATIENCE_S = 35.0
_OVERSLEPT_S = 5.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of a living run.

    Args:
        pid: of the training process.
        suspended: it was stopped by a signal, and takes no step until it is woken.
        quiet_s: seconds since it was last seen to move.
        usual_s: seconds after which that is too long in this phase.
        phase: what it does; empty for a run that reports nothing.
        step: steps done; None likewise.
        free: bytes that its disk still takes.
        checkpoint: bytes of its newest checkpoint; 0 when there is none.
    """

    pid: int
    suspended: bool
    quiet_s: float
    usual_s: float
    phase: str
    step: int | None
    free: int
    checkpoint: int


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
    found = (_hang(seen), _disk(seen, settings))
    new = tuple(alert for alert in found if alert is not None and alert.occasion not in told)
    still = {alert.occasion for alert in found if alert is not None}
    return Alerts(new, frozenset(one for one in told - still if _has_passed(one, seen, settings)))


def _hang(seen: Observation) -> Alert | None:
    facts = {"pid": seen.pid, "quiet_s": round(seen.quiet_s, 1), "usual_s": round(seen.usual_s, 1),
             "phase": seen.phase, "step": seen.step}  # fmt: skip
    if seen.suspended:
        return Alert("hang", f"hangs: PID {seen.pid} is suspended (state T); kill -CONT {seen.pid} wakes it", facts)
    if seen.quiet_s <= seen.usual_s:
        return None
    what = f"no progress in phase {printable(seen.phase)}" if seen.phase else "the log has not grown"
    at = "" if seen.step is None else f" at step {seen.step}"
    usual = f"usual is under {ago(seen.usual_s)}"
    return Alert("hang", f"may hang{at}: {what} for {ago(seen.quiet_s)} ({usual}), PID {seen.pid}", facts)


def _disk(seen: Observation, settings: Settings) -> Alert | None:
    if not seen.checkpoint or seen.free >= settings.disk_low_checkpoints * seen.checkpoint:
        return None
    room = f"{size(seen.free)} left, the newest checkpoint has {size(seen.checkpoint)}"
    facts = {"free": seen.free, "checkpoint": seen.checkpoint}
    return Alert("disk", f"disk low: room for {seen.free / seen.checkpoint:.1f} more checkpoints ({room})", facts)


def _has_passed(occasion: str, seen: Observation, settings: Settings) -> bool:
    """Whether something that is not bad any more is good by a margin, so that it does not come and go."""
    if occasion == "disk":
        return seen.free >= (settings.disk_low_checkpoints + 1) * seen.checkpoint
    return True


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, for those who were not looking.

    Args:
        state: completed, interrupted, crashed, killed.
        exit_code: exit status.
        signal: that ended or stopped it.
        why: one line on it.
        seconds: how long it ran.
        step: steps done; None for a run that reports none.
        total: steps wanted.
        checkpoint: name of the newest checkpoint; empty when there is none.
    """

    state: State
    exit_code: int
    signal: int | None
    why: str
    seconds: float
    step: int | None
    total: int | None
    checkpoint: str

    @property
    def occasion(self) -> str:
        """A crash, or any other end."""
        return "crash" if self.state in ("crashed", "killed") else "end"

    @property
    def text(self) -> str:
        """One line for people."""
        reason = process.signal_name(self.signal) if self.signal else ""
        if self.state == "crashed":
            reason = f"exit status {self.exit_code}"
        if self.why and self.why != reason:
            reason += f"{': ' if reason else ''}{printable(self.why)}"
        step = "" if self.step is None else f" at step {self.step}{f' of {self.total}' if self.total else ''}"
        kept = f"newest checkpoint {printable(self.checkpoint)}" if self.checkpoint else "no checkpoint"
        return f"{self.state}{step} after {ago(self.seconds)}{f' ({reason})' if reason else ''}; {kept}"


class Watchdog:
    """Looks after one supervised run from its start until after its end.

    Args:
        claim: the held directory.
        settings: thresholds, and whom to tell.
        environment: for who delivers notices, without the guard's own variables.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        claim: Claim,
        settings: Settings,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim = claim
        self._settings = settings
        self._environment = environment
        self._clock = clock
        # Of our own, so that the run's end can be looked up after the lock was let go.
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=claim.lock.fd)
        self._told: frozenset[str] = frozenset()
        self._looked_at = self._moved_at = clock()
        self._last_sign: tuple[object, ...] = ()
        self._couriers: list[subprocess.Popen[bytes]] = []
        self._broken = False
        self._reachable: tuple[NotifyEntry, ...] | None = None

    def look(self) -> None:
        """Look, if it is time to. Costs microseconds when it is not, and never raises."""
        now = self._clock()
        since = now - self._looked_at
        if since < self._settings.watch_every_s or self._broken:
            return
        self._looked_at = now
        try:
            self._look(now, since)
        except OSError:  # such as a file server that restarts: the next look may succeed
            return
        except Exception as error:  # watching must not end what is watched
            self._broken = True
            self._note("watching failed", why=f"{type(error).__name__}: {error}")

    def ended(self, state: State, *, exit_code: int, signal: int | None, why: str, seconds: float) -> None:
        """Tell how the run ended, after the lock was let go. Never raises.

        Args:
            state: completed, interrupted, crashed, killed.
            exit_code: exit status.
            signal: that ended or stopped it.
            why: one line on it.
            seconds: how long it ran.
        """
        try:
            ending = self._ending(state, exit_code, signal, why, seconds)
            self._send(ending.occasion, ending.text, _facts_of(ending))
            if self._couriers and _takes_all_along():
                self._couriers[-1].wait(_PATIENCE_S)
        except Exception as error:  # the run is over and its lock is free: that must not become a failure now
            self._note("watching failed", why=f"{type(error).__name__}: {error}")
        self.close()

    def close(self) -> None:
        """Let the directory go."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _look(self, now: float, since: float) -> None:
        owner = self._claim.owner
        if owner is None:
            return
        self._whom()
        seen = self._observe(owner, now, since)
        found = alerts(seen, self._told, self._settings)
        self._told = (self._told | {alert.occasion for alert in found.new}) - found.over
        for occasion in sorted(found.over):
            self._say(f"solorun: {_PASSED[occasion]}")
            self._note("passed", occasion=occasion)
        for alert in found.new:
            self._say(f"solorun: WARNING: {alert.text}")
            self._note("warned", occasion=alert.occasion, text=alert.text, **alert.facts)
            self._send(alert.occasion, alert.text, alert.facts)
        self._couriers = [courier for courier in self._couriers if courier.poll() is None]

    def _observe(self, owner: Owner, now: float, since: float) -> Observation:
        progress = self._progress()
        sign = _sign(progress, self._fd)
        # Counted by our own looks: a clock that was set, a machine or a supervisor that slept, must not alarm anybody.
        overslept = since > 2 * self._settings.watch_every_s + _OVERSLEPT_S
        if sign != self._last_sign or overslept:
            self._moved_at, self._last_sign = now, sign
        sighting = process.probe(owner.process.pid)
        disk = os.fstatvfs(self._fd)
        return Observation(
            pid=owner.process.pid,
            suspended=isinstance(sighting, Alive) and sighting.state == "T",
            quiet_s=now - self._moved_at,
            usual_s=silence_limit(progress, self._settings),
            phase=progress.phase if progress else "",
            step=progress.step if progress else None,
            free=disk.f_bavail * disk.f_frsize,
            checkpoint=next((file.size for file in checkpoint_files(self._fd)), 0),
        )

    def _progress(self) -> Progress | None:
        progress = read_progress(self._fd)
        return progress if progress is not None and progress.run_id == self._claim.run_id else None

    def _ending(self, state: State, exit_code: int, signal: int | None, why: str, seconds: float) -> Ending:
        record = read_record(self._fd)
        if record is not None and record.run_id != self._claim.run_id:  # the next run was quick
            record = None
        kept = next((file.name for file in checkpoint_files(self._fd)), "")
        step, total = (record.last_step, record.total_steps) if record else (None, None)
        return Ending(state, exit_code, signal, _cause(record) or why, seconds, step, total, kept)

    def _send(self, occasion: str, text: str, facts: Mapping[str, Any]) -> None:
        entries = self._whom()
        path = self._path() if entries else None
        if path is None:
            return
        from solorun import notify  # who tells nobody does not load it

        notice = notify.Notice(
            occasion=occasion,
            directory=path,
            run_id=self._claim.run_id,
            host=process.here().host,
            user=process.user_name(os.getuid()),
            time=self._claim.clock(),
            text=text,
            facts=facts,
        )
        try:
            courier = notify.send([notice], entries, self._environment)
        except OSError as error:
            self._say(f"solorun: WARNING: notice of {occasion} could not be sent: {error.strerror}")
            self._note("notice failed", occasion=occasion, why=error.strerror)
            return
        if courier is not None:
            self._couriers.append(courier)

    def _whom(self) -> tuple[NotifyEntry, ...]:
        """Whom to tell; that some cannot be told is said once, not at each occasion."""
        if self._reachable is None and not self._settings.notify:
            self._reachable = ()
        elif self._reachable is None:
            from solorun import notify

            self._reachable = notify.reachable(self._settings.notify)
            if len(self._reachable) < len(self._settings.notify):
                self._say(f"solorun: WARNING: notices by apprise are not sent: {notify.NO_APPRISE}")
                self._note("notice failed", occasion="all", to="apprise", why=notify.NO_APPRISE)
        return self._reachable

    def _path(self) -> str | None:
        """Where the directory is now; None when it was deleted. The lock cannot be asked: it may be let go already."""
        facts, path = os.fstat(self._fd), self._claim.lock.path
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), facts):
                return path
        return process.path_of_descriptor(self._fd) if facts.st_nlink else None

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # opened each time: the claim closes its own at the end
            log = LogFile(self._fd)
            log.remark(line)
            log.close()

    def _note(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):
            journal(self._fd, self._claim.run_id, event, self._claim.clock(), **facts)


_PASSED = {"hang": "the run moves again", "memory": "memory is enough again", "disk": "the disk has room again"}


def _sign(progress: Progress | None, directory: int) -> tuple[object, ...]:
    """What changes whenever the run moves: its heartbeat, or its log when it has none."""
    if progress is not None:
        return progress.time, progress.step, progress.phase, progress.phase_since
    with contextlib.suppress(OSError):
        return (os.stat(LOG, dir_fd=directory).st_mtime_ns,)
    return ()


def _cause(record: RunRecord | None) -> str:
    return record.why if record is not None else ""


def _facts_of(ending: Ending) -> dict[str, Any]:
    facts = {name: getattr(ending, name) for name in Ending.__slots__}
    return {**facts, "seconds": round(ending.seconds, 1)}


def _takes_all_along() -> bool:
    """Whether our own end would end the courier: as a container's first process, or as a service of systemd."""
    return os.getpid() == 1 or os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
