"""Many starts at once on one directory, killed at random moments in every phase: one writer, true words, no hand.

In half of the fights a real `solorun stop` must have stopped: nothing of the run that it ended may be alive.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from solorun import process
from tests.faults.tally import Tally
from tests.guard.stage import Child, Spawner, names

FIGHTS = 150
_STARTS = 8
_WRITER = """
import fcntl, os, sys, time
marker = os.open(sys.argv[1] + ".marker", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open(sys.argv[1] + ".double", "a").write(f"{os.getpid()} entered beside another\\n")
if os.fork() == 0:  # a worker, which keeps the marker when the trainer is killed
    time.sleep(float(sys.argv[2]) / 2)
    os._exit(0)
time.sleep(float(sys.argv[2]))
"""
_FLAGS = ((), ("--wait",), ("--background", "--json"), ("--background", "--json", "--wait"))
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGSTOP)
_LEFT_OVER = {"training.lock", "training.owner.json", "training.pid", "waiting"}
_ENDED_WITHIN_S = 100
_LEAST_SIGNALS = 3
"""In each half of a fight, however slow the machine is."""


def attack(seed: int, share: float = 1.0) -> Tally:
    """Let starts fight for a directory while they are killed.

    Args:
        seed: of the starts, and of what is done to whom.
        share: of 150 fights.
    """
    counts, failures = Counter[str](), list[str]()
    for number in range(max(1, round(FIGHTS * share))):
        with tempfile.TemporaryDirectory(prefix="starting-") as place:
            fight = _Fight(Path(place), random.Random(seed * 10_007 + number), counts, number % 2 > 0)
            failures += [f"seed {seed}, fight {number}: {what}" for what in fight.broken()]
    return Tally("starting", counts["starts"], tuple(failures), dict(counts))


class _Fight:
    """One fight: some starts, two seconds of torment, a stop amid them, and what is true afterwards."""

    def __init__(self, place: Path, chance: random.Random, counts: Counter[str], asks_to_stop: bool) -> None:
        self._results = place / "results" / "mine"
        self._results.mkdir(parents=True)
        self._spawn = Spawner(place)
        self._chance = chance
        # Apart, so that what is done does not hang on how often the machine came to do it.
        self._signals = itertools.cycle(chance.sample(_SIGNALS, len(_SIGNALS)))
        self._asks_to_stop = asks_to_stop
        self._counts = counts

    def broken(self) -> list[str]:
        """What broke a promise."""
        self._counts["fights"] += 1
        try:
            return list(self._fought())
        finally:
            self._spawn.end()

    def _fought(self) -> Iterator[str]:
        children = [self._start() for _ in range(_STARTS)]
        hit = self._torment(1.0)
        if self._asks_to_stop:
            self._await_a_run(children)
            yield from self._stop()
        hit |= self._torment(1.0)
        yield from self._await_ends(children)
        if self._results.with_name("mine.double").exists():
            yield "two wrote at once"
        began = [row["run_id"] for row in _journal(self._results) if row["event"] == "started"]
        for child, in_background in children:
            if in_background and child.pid not in hit and not _tells_the_truth(child, began):
                yield f"a start said what is not so: {child.text()!r}"
        last = self._spawn.solorun("start", self._results, "--wait", "--", "true")
        if last.wait(_ENDED_WITHIN_S):
            yield f"the last start ended with {last.popen.returncode}: {last.text()!r}"
        if left := {name for name in names(self._results) if name in _LEFT_OVER or name.endswith(".tmp")}:
            yield f"left behind: {sorted(left)}"

    def _start(self) -> tuple[Child, bool]:
        flags = self._chance.choice(_FLAGS)
        writer = self._spawn.program("writer.py", _WRITER)
        command = (sys.executable, "-S", writer, self._results, f"{self._chance.random():.2f}")
        self._counts["starts"] += 1
        child = self._spawn.solorun("start", self._results, *flags, "--", *command, start_new_session=True)
        return child, "--background" in flags

    def _torment(self, seconds: float) -> set[int]:
        """Signal any of the processes, now and then; the PIDs that were hit. Who was suspended is woken in the end."""
        hit: set[int] = set()
        until, signals = time.monotonic() + seconds, 0
        while time.monotonic() < until or (signals < _LEAST_SIGNALS and self._spawn.descendants()):
            time.sleep(self._chance.random() * 0.5)
            if living := self._spawn.descendants():
                victim, number = self._chance.choice(living), next(self._signals)
                signals += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid, number)
                self._counts[signal.Signals(number).name] += 1
                hit.add(victim.pid)
        for one in self._spawn.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGCONT)
        return hit

    def _await_a_run(self, children: list[tuple[Child, bool]]) -> None:
        """Until there is something to stop, or nobody is left who could begin it."""
        deadline = time.monotonic() + _ENDED_WITHIN_S
        while not (self._results / "training.owner.json").exists() and time.monotonic() < deadline:
            if all(child.popen.poll() is not None for child, _ in children) and not self._spawn.descendants():
                return
            time.sleep(0.01)

    def _stop(self) -> Iterator[str]:
        """A stop with exit status 0 has stopped: nobody of the run that was there is alive."""
        try:
            run = json.loads((self._results / "training.owner.json").read_text())["run_id"]
        except (FileNotFoundError, ValueError):
            return
        stop = self._spawn.solorun("stop", self._results, "--grace", "30", "--kill")
        code = stop.wait(_ENDED_WITHIN_S)
        self._counts["stops"] += 1
        if alive := process.carriers(run):
            yield f"a stop ended with {code} and left {[process.argv(one.pid) for one in alive]}: {stop.text()!r}"
        if code:
            yield f"a stop ended with {code}: {stop.text()!r}"

    def _await_ends(self, children: list[tuple[Child, bool]]) -> Iterator[str]:
        deadline = time.monotonic() + _ENDED_WITHIN_S
        while time.monotonic() < deadline:
            if all(child.popen.poll() is not None for child, _ in children) and not self._spawn.descendants():
                return
            time.sleep(0.02)
        alive = [process.argv(one.pid) for one in self._spawn.descendants()]
        yield f"still there after {_ENDED_WITHIN_S} s: {alive}"


def _tells_the_truth(child: Child, began: list[str]) -> bool:
    """Whether what a background start said is so: a run of that id began, it waits, or it failed with a reason."""
    _warnings, brace, answer = child.text().partition("{")
    if not brace:
        return child.popen.returncode != 0 and child.text().startswith("solorun: ")
    told = json.loads(brace + answer)
    return told["state"] == "waiting" or told["run_id"] in began


def _journal(results: Path) -> list[dict[str, str]]:
    path = results / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
