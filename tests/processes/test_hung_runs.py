"""Runs that hang are named so, by what is certain and what is strong; healthy slow ones never are."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes.conftest import until

LIMITS = """
silent_floor_s = 1.5
silent_unknown_s = 1.5
silent_ceiling_s = 30.0
"""
PREFACE = """
import os, sys, threading, time, solorun
with solorun.hold("results/run", settle_s=0) as run:
    for step in range(1, 6):
        time.sleep(0.02)
        run.progress(step, 1000)
    print("stepping", flush=True)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a trainer that makes five quick steps, and then does what the body says."""
    (tmp_path / "solorun.toml").write_text(LIMITS)
    started: list[subprocess.Popen[str]] = []

    def run(body: str) -> subprocess.Popen[str]:
        code = PREFACE + textwrap.indent(textwrap.dedent(body), "    ")
        # A group of its own: whatever a test makes of the trainer, its children end with it.
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "stepping\n"
        return child

    yield run
    for child in started:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def status(place: Path) -> dict[str, Any]:
    """What `solorun status --json` tells of the run, as a command of its own."""
    command = [sys.executable, "-m", "solorun", "status", "--json", "results"]
    told = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=True)
    (row,) = json.loads(told.stdout)["runs"]
    assert isinstance(row, dict)
    return row


def named(place: Path, state: str, words: str = "") -> dict[str, Any]:
    """The row once the run is called so with these words, and never anything else than running or silent before.

    Silent it may be for a moment: on a busy machine a run comes late to where it hangs, and an endless loop late to
    its share of the processor.
    """
    row: dict[str, Any] = {}

    def told() -> bool:
        row.update(status(place))
        assert row["state"] in ("running", "silent", state), row["detail"]
        return bool(row["state"] == state and words in row["detail"])

    until(told, every_s=0.1)
    return row


# Five that hang.


def test_an_endless_loop_is_silent_and_said_to_use_the_cpu(start: Start, tmp_path: Path) -> None:
    start("while True: pass")
    assert named(tmp_path, "silent", "still using CPU")["detail"].startswith("no progress in phase training for ")


def test_a_loop_that_logs_retries_is_silent_however_fresh_its_log(start: Start, tmp_path: Path) -> None:
    start("while True: run.log('cannot reach the store, trying again'); time.sleep(0.05)")
    row = named(tmp_path, "silent", "still being scheduled")
    assert row["log_age_s"] < row["step_age_s"]


@pytest.mark.parametrize(
    "body",
    ["lock = threading.Lock(); lock.acquire(); lock.acquire()", "read, write = os.pipe(); os.read(read, 1)"],
    ids=["a deadlock", "a dead pipe"],
)
def test_a_deadlock_and_a_dead_pipe_are_hung(start: Start, tmp_path: Path, body: str) -> None:
    start(body)
    row = named(tmp_path, "hung")
    assert "no CPU time and no context switch in 0.5 s" in row["detail"]


def test_a_suspended_run_is_hung_at_once(start: Start, tmp_path: Path) -> None:
    child = start("while True: run.progress(6, 1000); time.sleep(0.01)")
    child.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    row = status(tmp_path)
    assert row["state"] == "hung"
    assert row["detail"] == f"PID {child.pid} is suspended (state T); SIGCONT lets it go on"


def test_a_run_that_waits_for_a_disk_is_hung(start: Start, tmp_path: Path) -> None:
    if platform.system() != "Linux":
        pytest.skip("state D is made with Linux's vfork, whose parent waits in the kernel until the child executes")
    # The child of a vfork that never executes keeps its parent in state D, as a disk that never answers does.
    child = start("""
        import ctypes
        libc = ctypes.CDLL(None)
        if libc.vfork() == 0:
            libc.sleep(600)
            os._exit(0)
    """)
    row = named(tmp_path, "hung")
    assert "state D" in row["detail"]
    assert f"PID {child.pid}" in row["detail"]


def test_a_hang_of_an_old_style_trainer_is_told_by_its_log(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text(LIMITS)
    (tmp_path / "results" / "run").mkdir(parents=True)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "results" / "run" / "training.lock").write_text(f"{child.pid}\n")
        row = named(tmp_path, "hung")
        assert row["detail"].startswith("the log has not grown")
    finally:
        child.kill()
        child.communicate()


# Three that are healthy and slow, looked at for longer than the floor of the limit.


@pytest.mark.parametrize(
    "body",
    [
        "while True: [0 for _ in range(1_000_000)]; step += 1; run.progress(step, 1000)",
        "while True: time.sleep(0.4); step += 1; run.progress(step, 1000)",
        "time.sleep(1.5); run.progress(6, 1000); time.sleep(600)",
    ],
    ids=["busy on the CPU", "waiting for a device", "in one long step of a known pace"],
)
def test_a_healthy_slow_run_is_running(start: Start, tmp_path: Path, body: str) -> None:
    # The floor stays; a step may take much longer than usual, since three looks take long on a busy machine.
    (tmp_path / "solorun.toml").write_text("silent_floor_s = 1.5\nsilent_factor = 100\nsilent_ceiling_s = 3600\n")
    start(body)
    if "600" in body:  # the long step begins, after one of 1.5 s
        until(lambda: status(tmp_path)["step"] == 6)
    end = time.monotonic() + 3
    looks = 0
    while time.monotonic() < end or looks < 3:
        row = status(tmp_path)
        assert row["state"] == "running", row["detail"]
        looks += 1


def test_a_thousand_directories_share_one_window(start: Start, tmp_path: Path) -> None:
    from solorun import status as room
    from solorun.settings import Settings

    start("os.read(os.pipe()[0], 1)")
    named(tmp_path, "hung")  # it has come to where it hangs, and does nothing any more
    label = (tmp_path / "results" / "run" / "training.lock").read_text()
    for number in range(20):
        other = tmp_path / "results" / f"old {number}"
        other.mkdir()
        (other / "training.lock").write_text(label)  # an old-style label: all of them seem not to move
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    found = room.survey([tmp_path], time.time() + 60, Settings(silent_unknown_s=1, silent_floor_s=1), sleep=sleep)
    assert slept == [0.5]
    assert {type(state).__name__ for _, state, _ in found} == {"Hung"}
    assert len(found) == 21
