"""What a supervisor watches while its run lives: a hang, and memory or disk that will not last. And how it tells.

Every warning is a line in the log, an event in the journal, and a notice to whom it concerns. Nothing here ends a run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solorun import disk, memory, process
from solorun.alerts import Observation, alerts
from solorun.claim import Claim
from solorun.farewell import Ending
from solorun.footprint import Footprint
from solorun.frozen import replace
from solorun.hang import HangVerdict, Looks, Working, is_still, judge_hang
from solorun.logs import LogFile
from solorun.members import members
from solorun.memory import Memory
from solorun.notice import Notice
from solorun.owner import Activity, Alive, Owner, ProcessId
from solorun.progress import Progress, read_progress
from solorun.record import State, journal
from solorun.rundir import LOG, checkpoint_files
from solorun.runstate import silence_in_words, silence_limit
from solorun.settings import NotifyEntry, Settings

if TYPE_CHECKING:
    import subprocess

_PATIENCE_S = 35.0
_OVERSLEPT_S = 5.0
_SAMPLE_EVERY_S = 0.5
_AGAIN_S = 600.0
_MEMORY_SHARE = 0.005


class Watchdog:
    """Looks after one supervised run from its start until after its end.

    Args:
        claim: the held directory.
        settings: thresholds, and whom to tell.
        environment: for who delivers notices, without the guard's own variables.
        clock: seconds that never go back.
        read_memory: looks at the machine's memory.
    """

    def __init__(
        self,
        claim: Claim,
        settings: Settings,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        read_memory: Callable[[], Memory | None] = memory.read,
    ) -> None:
        self._claim = claim
        self._settings = settings
        self._environment = environment
        self._clock = clock
        # Of our own, so that the run's end can be looked up after the lock was let go.
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=claim.lock.fd)
        self._told: dict[str, float] = {}
        self._looked_at = self._moved_at = clock()
        self._sample_at = self._memory_at = 0.0
        self._last_sign: tuple[object, ...] = ()
        self._first_look: Mapping[int, Activity | None] | None = None
        self._read_memory = read_memory
        self._memory: Memory | None = None
        self._footprint = Footprint(self._members)
        self._couriers: list[subprocess.Popen[bytes]] = []
        self._broken = False
        self._reachable: tuple[NotifyEntry, ...] | None = None

    def look(self) -> None:
        """Look, if it is time to. Costs microseconds when it is not, and never raises."""
        now = self._clock()
        since = now - self._looked_at
        due = since >= self._settings.watch_every_s
        if self._broken or not (due or now >= self._sample_at):
            return
        try:
            self._sample(now)
            if due:
                self._looked_at = now
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
            record = self._claim.record
            if record is not None:
                if record.state == "running":  # a full disk kept its end from being written down
                    record = replace(record, state=state, exit_code=exit_code, signal=signal, why=why)
                kept = next((file.name for file in checkpoint_files(self._fd)), "")
                ending = Ending(record, seconds, kept)
                self._send(ending.occasion, ending.text, ending.facts)
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

    def _sample(self, now: float) -> None:
        self._sample_at = now + _SAMPLE_EVERY_S
        progress = self._progress()
        if progress is not None:  # without phases nothing can be forecast
            self._footprint.sample(progress.phase, now)

    def _members(self) -> list[ProcessId]:
        return members(self._claim.owner, self._claim.run_id)

    def _look(self, now: float, since: float) -> None:
        owner = self._claim.owner
        if owner is None:
            return
        self._whom()
        found = alerts(self._observe(owner, now, since), frozenset(self._told), self._settings)
        for occasion in sorted(found.over):
            # What comes and goes, as the pressure on memory does, is not told every few seconds.
            if occasion == "hang" or now - self._told[occasion] >= _AGAIN_S:
                del self._told[occasion]
                self._say(f"solorun: {_PASSED[occasion]}")
                self._note("passed", occasion=occasion)
        for alert in found.new:
            self._told[alert.occasion] = now
            self._say(f"solorun: WARNING: {alert.text}")
            self._note("warned", occasion=alert.occasion, text=alert.text, **alert.facts)
            self._send(alert.occasion, alert.text, alert.facts)
        self._couriers = [courier for courier in self._couriers if courier.poll() is None]

    def _observe(self, owner: Owner, now: float, since: float) -> Observation:
        progress = self._progress()
        sign = _sign(progress, self._fd)
        # Counted by our own looks: a clock that was set, a machine or a supervisor that slept, must not alarm anybody.
        overslept = since > 2 * self._settings.watch_every_s + _OVERSLEPT_S
        if overslept:
            self._first_look = None
        if sign != self._last_sign or overslept:
            self._moved_at, self._last_sign = now, sign
        seen = self._see_memory(now)
        path = self._path()
        return Observation(
            pid=owner.process.pid,
            verdict=self._judge(owner, progress, now - self._moved_at, since),
            quiet_s=now - self._moved_at,
            phase=progress.phase if progress else "",
            step=progress.step if progress else None,
            memory=seen,
            shortfall=self._footprint.shortfall(seen.available) if seen and progress else None,
            room=disk.read(Path(path)) if path else None,
        )

    def _judge(self, owner: Owner, progress: Progress | None, quiet_s: float, since: float) -> HangVerdict:
        """Only a run that seems not to move is looked at closely, from one look to the next."""
        limit_s = silence_limit(progress, self._settings)
        sighting = process.probe(owner.process.pid)
        if quiet_s <= limit_s and not (isinstance(sighting, Alive) and is_still(sighting.state)):
            self._first_look = None
            return Working()
        # Asked anew each time: a worker that we did not know could be the one that works.
        second = {member.pid: process.activity(member.pid) for member in self._members()}
        first, self._first_look = self._first_look, second
        if first is None:
            return Working()
        looks = Looks(owner.process.pid, first, second, round(since, 1), process.background(since))
        return judge_hang(looks, quiet_s, limit_s, silence_in_words(progress, quiet_s, limit_s))

    def _see_memory(self, now: float) -> Memory | None:
        """The machine's memory; where looking takes long, as by the commands of macOS, less often."""
        if now >= self._memory_at:
            began = time.monotonic()
            self._memory = self._read_memory()
            self._memory_at = now + (time.monotonic() - began) / _MEMORY_SHARE
        return self._memory

    def _progress(self) -> Progress | None:
        progress = read_progress(self._fd)
        return progress if progress is not None and progress.run_id == self._claim.run_id else None

    def _send(self, occasion: str, text: str, facts: Mapping[str, Any]) -> None:
        entries = self._whom()
        path = self._path() if entries else None
        if path is None:
            return
        from solorun import notify  # who tells nobody does not load it

        notice = Notice(
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


def _takes_all_along() -> bool:
    """Whether our own end would end the courier: as a container's first process, or as a service of systemd."""
    return os.getpid() == 1 or os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
