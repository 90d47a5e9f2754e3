"""Many starts at once on one directory, killed at random moments in every phase: one writer, true words, no hand.

A short form of a hammer that was run for some hundreds of rounds; the seed makes a failure come again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from solorun import process
from tests.guard.stage import Child, Spawner, names, wait_until

WRITER = """
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
FLAGS = ((), ("--wait",), ("--background", "--json"), ("--background", "--json", "--wait"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGSTOP)
LEFT_OVER = {"training.lock", "training.owner.json", "training.pid", "waiting"}


@pytest.mark.parametrize("seed", range(4))
def test_of_many_starts_that_are_killed_at_random_one_writes_at_a_time_and_nothing_is_left(
    spawn: Spawner, results: Path, seed: int
) -> None:
    chance = random.Random(seed)
    writer = spawn.program("writer.py", WRITER)
    children: list[tuple[Child, bool]] = []
    for _ in range(8):
        flags = chance.choice(FLAGS)
        command = (sys.executable, "-S", writer, results, f"{chance.random() * 0.5:.2f}")
        child = spawn.solorun("start", results, *flags, "--", *command, start_new_session=True)
        children.append((child, "--background" in flags))
    hit = torment(spawn, chance, 2.0)
    for child, _ in children:
        child.wait()
    wait_until(lambda: not spawn.descendants(), what=lambda: [process.argv(one.pid) for one in spawn.descendants()])
    assert not results.with_name(results.name + ".double").exists()
    started = [row["run_id"] for row in journal(results) if row["event"] == "started"]
    for child, in_background in children:
        if in_background and child.pid not in hit:
            assert tells_the_truth(child, started), child.text()
    last = spawn.solorun("start", results, "--wait", "--", "true")
    assert last.wait() == 0, last.text()
    assert names(results) & LEFT_OVER == set()
    assert [name for name in names(results) if name.endswith(".tmp")] == []


def torment(spawn: Spawner, chance: random.Random, seconds: float) -> set[int]:
    """Signal any of the processes, now and then; the PIDs that were hit. Who was suspended is woken in the end."""
    hit: set[int] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chance.random() * 0.5)
        if living := spawn.descendants():
            victim = chance.choice(living)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, chance.choice(SIGNALS))
            hit.add(victim.pid)
    for one in spawn.descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGCONT)
    return hit


def tells_the_truth(child: Child, started: list[str]) -> bool:
    """Whether what a background start said is so: a run of that id began, it waits, or it failed with a reason."""
    if not child.text().startswith("{"):
        return child.popen.returncode != 0 and child.text().startswith("solorun: ")
    told = json.loads(child.text())
    return told["state"] == "waiting" or told["run_id"] in started


def journal(results: Path) -> list[dict[str, str]]:
    path = results / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
