"""An hour of supervised runs under random signals: does anything grow, tear, double or stay behind?

Two directories. The run in `steady` lives all the time and gets what must not end it: it is suspended and woken, its
label is deleted, other starts try to enter, watchers look. In `mortal` a run begins, its trainer or its supervisor or
both are killed or asked to stop, and the next one begins, with no hand on anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from solorun import process
from solorun.owner import decode_owner
from tests.faults.tally import Tally

SECONDS = 3_600
_ROOT = Path(__file__).resolve().parents[2]

_TRAINER = """
import fcntl, json, os, sys, time
import solorun
place = sys.argv[1]
with solorun.hold(place) as run:
    marker = os.open(place + ".marker", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        open(place + ".double", "a").write(f"{os.getpid()} trains beside another\\n")
    step = 0
    while not run.should_stop:
        step += 1
        run.progress(step, 10**9, **({"loss": 1 / step} if step % 10 == 0 else {}))
        if step % 50 == 0:
            print("step", step, flush=True)
        time.sleep(0.02)
    with run.phase("saving"):
        with open(place + "/state.tmp", "w") as file:
            file.write(str(step))
            os.fsync(file.fileno())
        os.replace(place + "/state.tmp", place + "/state")
"""

HARMLESS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG)
_SUSPENDS = (signal.SIGSTOP, signal.SIGTSTP)
FATAL = (
    signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGSEGV,
    signal.SIGQUIT,
)  # fmt: skip
_GROWTH_KIB = 2_048
_ENDED_WITHIN_S = 60
_LEAST_ROUNDS = 8
"""However slow the machine is."""


def attack(seed: int, share: float = 1.0) -> Tally:
    """Torment two supervised runs.

    Args:
        seed: of what is done when; the moments differ from run to run.
        share: of an hour.
    """
    chance, rounds = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="endurance-") as place:
        torment = _Torment(Path(place), chance)
        torment.begin("steady")
        torment.begin("mortal")
        until = time.monotonic() + SECONDS * share
        while (time.monotonic() < until or rounds < _LEAST_ROUNDS) and len(torment.failures) < 10:
            rounds += 1
            torment.steady()
            torment.mortal()
            time.sleep(chance.uniform(0.2, 1.5))
        torment.end()
    counts = {**torment.counts, **torment.growth()}
    failures = tuple(f"seed {seed}: {one}" for one in torment.failures)
    return Tally("endurance", torment.counts["signals"], failures, counts)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Of one process: resident memory in KiB, open descriptors."""

    kib: int
    descriptors: int


@dataclass(slots=True)
class _Torment:
    """What is done to both runs, and what was seen."""

    place: Path
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    samples: dict[str, list[_Sample]] = field(default_factory=lambda: {"supervisor": [], "trainer": []})

    def begin(self, name: str) -> None:
        """Start a run in the background; it must need no hand."""
        program = self.place / "trainer.py"
        program.write_text(_TRAINER)
        command = (sys.executable, str(program), str(self.place / name))
        done = self._solorun("start", str(self.place / name), "--background", "--", *command)
        self.counts["starts"] += 1
        if done.returncode:
            self.failures.append(f"a start in {name} ended with {done.returncode}: {done.stdout[-400:]!r}")

    def steady(self) -> None:
        """One thing that must not end the run, and a look at what it takes."""
        victims = self._processes("steady")
        if len(victims) < 2:
            self.failures.append(f"the steady run has {sorted(victims)} left")
            return
        for role, victim in victims.items():
            with contextlib.suppress(psutil.Error):
                self.samples[role].append(_Sample(victim.memory_info().rss >> 10, victim.num_fds()))
        deeds = (self._disturb, self._disturb, self._disturb, self._remove, self._intrude, self._watch)
        self.chance.choice(deeds)(self.chance.choice(list(victims.values())))

    def _disturb(self, victim: psutil.Process) -> None:
        number = self.chance.choice(HARMLESS)
        victim.send_signal(number)
        self.counts["signals"] += 1
        self.counts["harmless signals"] += 1
        if number in _SUSPENDS:
            time.sleep(self.chance.uniform(0, 1))
            victim.send_signal(signal.SIGCONT)

    def _remove(self, _victim: psutil.Process) -> None:
        label = self.place / "steady" / "training.lock"
        label.unlink(missing_ok=True)
        self.counts["labels removed"] += 1
        deadline = time.monotonic() + _ENDED_WITHIN_S
        while not label.exists():
            if time.monotonic() > deadline:
                self.failures.append(f"a label that was removed did not come back within {_ENDED_WITHIN_S} s")
                return
            time.sleep(0.01)

    def _intrude(self, _victim: psutil.Process) -> None:
        done = self._solorun("start", str(self.place / "steady"), "--", "true")
        self.counts["starts refused"] += 1
        if done.returncode != 3:
            self.failures.append(f"a start beside a live run ended with {done.returncode}: {done.stdout[-400:]!r}")

    def _watch(self, _victim: psutil.Process) -> None:
        done = self._solorun("status", str(self.place / "steady"), "--json")
        self.counts["looks"] += 1
        state = json.loads(done.stdout)["runs"][0]["state"] if done.returncode == 0 else done.stdout
        if state not in ("running", "silent", "hung"):  # suspended a moment ago, it is hung
            self.failures.append(f"status of a live run says {state!r}")

    def mortal(self) -> None:
        """Kill or end what runs there, now and then; begin anew what has ended."""
        victims = self._processes("mortal")
        if not victims:
            if not self.failures:
                self.begin("mortal")
            return
        number, who = self.chance.choice(FATAL), self.chance.choice(("trainer", "supervisor", "both"))
        for role, victim in victims.items():
            if who in (role, "both"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(number)
                    self.counts["signals"] += 1
                    self.counts[f"{signal.Signals(number).name} in the mortal directory"] += 1
        if self.chance.random() < 0.5:
            done = self._solorun("stop", str(self.place / "mortal"), "--grace", str(_ENDED_WITHIN_S))
            self.counts["stops"] += 1
            if done.returncode or self._processes("mortal"):
                self.failures.append(f"a stop ended with {done.returncode}: {done.stdout[-400:]!r}")

    def end(self) -> None:
        """Stop both, and read what they wrote."""
        for name in ("steady", "mortal"):
            directory = self.place / name
            done = self._solorun("stop", str(directory), "--grace", str(_ENDED_WITHIN_S))
            if done.returncode or self._processes(name):
                self.failures.append(f"the last stop in {name} ended with {done.returncode}: {done.stdout[-400:]!r}")
            last = self._solorun("start", str(directory), "--", "true")
            if last.returncode:
                self.failures.append(f"the last start in {name} ended with {last.returncode}: {last.stdout[-400:]!r}")
            self._read_journal(directory)
            if Path(f"{directory}.double").exists():
                self.failures.append(f"two trained in {name} at once")
        for what, by in self.growth().items():
            if by > (_GROWTH_KIB if "KiB" in what else 0):
                self.failures.append(f"{what}: {by}")

    def _read_journal(self, directory: Path) -> None:
        """Every line is whole, and each run that began has exactly one end."""
        began, ended = Counter[str](), Counter[str]()
        for line in (directory / "events.jsonl").read_text().splitlines():
            self.counts["lines of journals"] += 1
            try:
                row = json.loads(line)
            except ValueError:
                self.failures.append(f"a line of the journal of {directory.name} is torn: {line[:200]!r}")
                continue
            began[row["run_id"]] += row["event"] == "started"
            ended[row["run_id"]] += row["event"] in ("ended", "found dead")
        for run, times in began.items():
            if times and (times != 1 or ended[run] != 1):
                self.failures.append(f"{run} in {directory.name} began {times} times and ended {ended[run]} times")

    def growth(self) -> dict[str, int]:
        """How much more memory and descriptors the steady run has in its last fifth than in its second one.

        At least two looks each: one alone may meet a file that is open for a moment.
        """
        found = {}
        for role, samples in self.samples.items():
            fifth = len(samples) // 5
            if fifth > 1:
                early, late = samples[fifth : 2 * fifth], samples[-fifth:]
                kib = statistics.median(s.kib for s in late) - statistics.median(s.kib for s in early)
                # What leaks stays; a file that is open at the moment of a look is closed in another one.
                more = min(s.descriptors for s in late) - max(s.descriptors for s in early)
                found |= {f"KiB that the {role} grew": int(kib), f"descriptors more that the {role} has": int(more)}
        return found

    def _processes(self, name: str) -> dict[str, psutil.Process]:
        """The living processes of the run in a directory, by role."""
        try:
            owner = decode_owner((self.place / name / "training.owner.json").read_bytes())
        except FileNotFoundError:
            return {}
        roles = {"trainer": owner.process, "supervisor": owner.supervisor} if owner else {}
        found = {}
        for role, one in roles.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if one is not None and process.is_alive(one):
                    found[role] = psutil.Process(one.pid)
        return found

    def _solorun(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SOLORUN_STATE": str(self.place / "state"), "SOLORUN_SHARE_ACCELERATOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", "solorun", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", env=environment, cwd=_ROOT, timeout=600, check=False,
        )  # fmt: skip
