"""A launcher starts several processes as one run, and one of them holds the directory: the others belong to it."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import solorun
from solorun import claimants, process, stop
from solorun.owner import decode_owner, encode_owner
from solorun.stop import Stopped, StopPolicy

from .stage import DEADLINE_S, Child, Spawner, events, label_of, owner_of, run_record, wait_until

PATIENT = StopPolicy(DEADLINE_S)
TRAINER = """
import os, sys, time, solorun
rank, directory = sys.argv[1], sys.argv[3]
os.write(1, f"rank {rank} {os.getpid()}\\n".encode())  # in one piece: two ranks write at once
if rank == "1":
    sys.stdin.read()  # until the launcher lets it go
    sys.exit()
with solorun.hold(directory, launcher=os.getppid()) as run:
    said = []
    solorun.require_accelerator("cpu", tell=said.append, launcher=os.getppid())
    os.write(1, f"neighbours {said}\\nholding\\n".encode())
    while not run.should_stop:
        time.sleep(0.01)
"""
LAUNCHER = """
import subprocess, sys, time
command = [sys.executable, sys.argv[1]]
words = ["--out", sys.argv[2]]
second = subprocess.Popen([*command, "1", *words], start_new_session=True, stdin=subprocess.PIPE)
first = subprocess.Popen([*command, "0", *words], start_new_session=True)
status = first.wait()
time.sleep(0.5)
second.communicate()
sys.exit(status and 1)  # as torchrun: whatever is not 0 is a failure
"""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that ends by itself is not asked to, however long a busy machine lets it take."""
    monkeypatch.setattr(stop, "_LEFTOVERS_S", DEADLINE_S)


def launched(spawn: Spawner, results: Path) -> Child:
    program = spawn.program("train.py", TRAINER)
    child = spawn.python(LAUNCHER, program, results)
    child.wait_for("holding")
    child.wait_for("rank 1")
    return child


def test_a_stop_waits_for_the_siblings_and_the_launcher(spawn: Spawner, results: Path) -> None:
    child = launched(spawn, results)
    everybody = [one for pid in (child.pid, *ranks(child)) if (one := process.identify(pid))]
    assert len(everybody) == 3
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert not any(map(process.is_alive, everybody))


def test_siblings_are_one_claimant(spawn: Spawner, results: Path) -> None:
    child = launched(spawn, results)
    found = claimants.find(results, time.time())
    assert [one.leader.pid for one in found] == [label_of(results)]
    assert {one.pid for one in found[0].members} >= set(ranks(child))


def test_a_sibling_is_no_neighbour(spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOLORUN_SHARE_ACCELERATOR")  # where sharing is allowed, nobody is looked for
    child = launched(spawn, results)
    told = next(line for line in child.text().splitlines() if line.startswith("neighbours"))
    assert not any(str(pid) in told for pid in ranks(child))


def ranks(child: Child) -> list[int]:
    return [int(line.split()[2]) for line in child.text().splitlines() if line.startswith("rank ")]


def test_a_guard_takes_the_trainers_word_over_the_status_that_its_launcher_makes_of_it(
    spawn: Spawner, results: Path
) -> None:
    program = spawn.program("train.py", TRAINER)
    child = spawn.solorun("start", results, "--", sys.executable, "-c", LAUNCHER, program, results)
    wait_until(lambda: "adopted" in events(results))
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == 143
    assert (run_record(results)["state"], run_record(results)["signal"]) == ("interrupted", signal.SIGTERM)


def test_a_follower_hears_a_stop_once_and_is_deaf_when_it_leaves() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with solorun.Follower() as run:
            assert (run.should_stop, run.exit_code) == (False, 0)
            signal.raise_signal(signal.SIGTERM)
            assert (run.should_stop, run.stop_reason, run.exit_code) == (True, "SIGTERM", 143)
        signal.raise_signal(signal.SIGTERM)  # what a launcher sends to all when the first of them has ended
        signal.raise_signal(signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before)


def test_a_run_told_of_a_stop_by_another_process_ends_as_if_it_had_heard_the_signal(results: Path) -> None:
    with pytest.raises(SystemExit) as left, solorun.hold(results, settle_s=0) as run:
        run.ask_to_stop("SIGINT: another rank was asked to stop", signal.SIGINT)
        assert run.should_stop
    assert left.value.code == 130
    assert run_record(results)["why"] == "SIGINT: another rank was asked to stop"


def test_another_exit_than_that_of_the_stop_is_a_crash(results: Path) -> None:
    with pytest.raises(SystemExit), solorun.hold(results, settle_s=0) as run:
        run.ask_to_stop("SIGTERM", signal.SIGTERM)
        raise SystemExit(1)  # the last save failed
    assert (run_record(results)["state"], run_record(results)["exit_code"]) == ("crashed", 1)


def test_a_record_names_the_launcher_only_where_there_is_one(results: Path) -> None:
    plain = owner_of(results, process.identify_self())
    assert b"launcher" not in encode_owner(plain)
    launched = replace(plain, launcher=process.identify_self())
    assert (decode_owner(encode_owner(plain)), decode_owner(encode_owner(launched))) == (plain, launched)
