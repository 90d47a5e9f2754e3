"""Supervised runs that end, crash, hang and fill a disk; and notifiers that misbehave: the run never waits for one."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solorun import process
from tests.guard.stage import Child, Spawner, events, label_of, run_record, wait_until, whole_rows

Start = Callable[..., Child]

NOTICED = """
[[notify]]
on = ["end", "crash", "hang", "memory", "disk"]
command = ["./tell"]
"""
WATCHED = """
watch_every_s = 0.1
settle_s = 0
memory_low = 0
disk_low_checkpoints = 0
"""
"""A machine that is slow, or short of memory or disk by itself, must not be told in every test."""
IMPATIENT = """
silent_unknown_s = 0.8
silent_floor_s = 0.8
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project whose notices end up in the file `told`."""
    place = tmp_path / "a project"
    place.mkdir()
    (place / "solorun.toml").write_text(WATCHED + NOTICED)
    script(place, f"cat >> {shlex.quote(str(place / 'told'))}")
    return place


def script(home: Path, line: str) -> None:
    (home / "tell").write_text(f"#!/bin/sh\n{line}\n")
    (home / "tell").chmod(0o755)


def told(home: Path) -> list[dict[str, Any]]:
    return whole_rows(home / "told")


def start(spawn: Spawner, home: Path, code: str, *argv: str) -> Child:
    program = spawn.program("trainer.py", code)
    return spawn.solorun("start", "run", "--", sys.executable, program, *argv, cwd=home)


STEPS = """
import solorun, sys, time
with solorun.hold("run") as run:
    for step in range(1, 8):
        run.progress(step, 300)
    open("run/checkpoint_5.bin", "w").write("weights")
    print("ready", flush=True)
    while sys.argv[1:] and not run.should_stop:
        run.progress(7, 300)
        time.sleep(0.02)
"""


def test_a_run_that_completes_is_told_after_its_lock_was_released(spawn: Spawner, home: Path) -> None:
    lock = shlex.quote(str(home / "run/training.lock"))
    script(home, f"cat >> {shlex.quote(str(home / 'told'))}; test ! -e {lock}")
    assert start(spawn, home, STEPS).wait() == 0
    wait_until(lambda: "notified" in events(home / "run"))
    (notice,) = told(home)
    assert notice["occasion"] == "end"
    assert notice["directory"] == str(home / "run")
    assert notice["run_id"] == run_record(home / "run")["run_id"]
    assert "completed, at step 7 of 300, after" in notice["text"]
    assert notice["text"].endswith("; newest checkpoint checkpoint_5.bin")
    assert {key: notice["facts"][key] for key in ("state", "exit_code", "step", "total", "checkpoint")} == {
        "state": "completed", "exit_code": 0, "step": 7, "total": 300, "checkpoint": "checkpoint_5.bin",
    }  # fmt: skip
    assert (home / "run/training.log").read_text().splitlines()[-1] == "Released lock"


def test_a_trainer_killed_with_9_is_told_by_its_supervisor_as_a_crash(spawn: Spawner, home: Path) -> None:
    child = start(spawn, home, STEPS, "forever")
    wait_until(lambda: "ready" in child.text())
    os.kill(label_of(home / "run"), signal.SIGKILL)
    assert child.wait() == 137
    wait_until(lambda: "notified" in events(home / "run"))
    (notice,) = told(home)
    assert (notice["occasion"], notice["facts"]["signal"]) == ("crash", 9)
    assert ", at step 7 of 300, after" in notice["text"]
    assert "killed by SIGKILL" in notice["text"]


def test_a_run_in_the_background_is_told_of_when_nobody_is_logged_in_any_more(spawn: Spawner, home: Path) -> None:
    program = spawn.program("trainer.py", STEPS)
    child = spawn.solorun(
        "start", "--background", "run", "--", sys.executable, program, "forever", cwd=home, start_new_session=True
    )
    assert child.wait() == 0, child.text()
    wait_until(lambda: "ready" in (home / "run/training.log").read_text())
    os.kill(label_of(home / "run"), signal.SIGKILL)
    wait_until(lambda: "notified" in events(home / "run"))
    assert told(home)[0]["occasion"] == "crash"


def test_a_stopped_run_is_an_end_and_no_crash(spawn: Spawner, home: Path) -> None:
    child = start(spawn, home, STEPS, "forever")
    wait_until(lambda: "ready" in child.text())
    child.signal(signal.SIGTERM)
    child.wait()
    wait_until(lambda: "notified" in events(home / "run"))
    (notice,) = told(home)
    assert (notice["occasion"], notice["facts"]["state"]) == ("end", "interrupted")


def test_a_command_that_cannot_be_executed_is_told(spawn: Spawner, home: Path) -> None:
    child = spawn.solorun("start", "run", "--", "no-such-program-here", cwd=home)
    assert child.wait() == 2
    wait_until(lambda: told(home))
    assert told(home)[0]["occasion"] == "crash"
    assert "No such file or directory" in told(home)[0]["text"]


def starts_silent(spawn: Spawner, home: Path) -> Child:
    """A run that hangs from its beginning; a shell, which does not take long until it has begun."""
    (home / "solorun.toml").write_text(WATCHED + IMPATIENT + NOTICED)
    return spawn.solorun("start", "run", "--", "sh", "-c", "echo ready; exec sleep 600", cwd=home)


def test_a_silent_run_is_told_while_it_lives_and_only_once(spawn: Spawner, home: Path) -> None:
    child = starts_silent(spawn, home)
    wait_until(lambda: told(home))
    assert told(home)[0]["occasion"] == "hang"
    assert "the log has not grown" in told(home)[0]["text"]
    child.wait_for("solorun: WARNING: hangs")
    wait_until(lambda: "notified" in events(home / "run"))
    child.signal(signal.SIGINT)
    child.wait()
    wait_until(lambda: len(told(home)) == 2)
    assert [notice["occasion"] for notice in told(home)] == ["hang", "end"]
    assert events(home / "run").count("warned") == 1


def test_a_suspended_run_is_told_as_a_hang(spawn: Spawner, home: Path) -> None:
    child = start(spawn, home, STEPS, "forever")
    wait_until(lambda: "ready" in child.text())
    pid = label_of(home / "run")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: told(home))
    assert f"PID {pid} is suspended" in told(home)[0]["text"]
    os.kill(pid, signal.SIGCONT)
    child.wait_for("the run moves again")
    child.signal(signal.SIGINT)
    child.wait()


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The project's results directory on a disk of 16 MiB."""
    place = home / "run"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_low_memory_is_told_while_the_run_lives(spawn: Spawner, home: Path) -> None:
    toml = home / "solorun.toml"
    toml.write_text(toml.read_text().replace("memory_low = 0", "memory_low = 1"))  # no machine has all of it free
    child = start(spawn, home, STEPS, "forever")
    wait_until(lambda: told(home))
    assert told(home)[0]["occasion"] == "memory"
    assert "memory low: " in told(home)[0]["text"]
    child.wait_for("solorun: WARNING: memory low: ")
    child.signal(signal.SIGINT)
    child.wait()


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_is_told_while_the_run_lives(spawn: Spawner, home: Path) -> None:
    code = """
import time
print("ready", flush=True)
for step in (1, 2, 3):
    with open(f"run/checkpoint_{step}.bin", "wb") as file:
        file.write(bytes(4 << 20))
while True:
    print("step", flush=True)
    time.sleep(0.1)
"""
    toml = home / "solorun.toml"
    toml.write_text(toml.read_text().replace("disk_low_checkpoints = 0", "disk_low_checkpoints = 2"))
    child = start(spawn, home, code)
    wait_until(lambda: told(home))
    assert told(home)[0]["occasion"] == "disk"
    assert "disk low: room for" in told(home)[0]["text"]
    child.signal(signal.SIGINT)
    child.wait()
    wait_until(lambda: len(told(home)) == 2)


# Notifiers that misbehave.


def test_a_notifier_that_hangs_delays_neither_the_release_nor_the_next_start(spawn: Spawner, home: Path) -> None:
    pids = home / "pids"
    script(home, f"echo $$ >> {shlex.quote(str(pids))}; exec sleep 600")
    first = starts_silent(spawn, home)
    wait_until(lambda: pids.exists())  # told of the hang; the notifier hangs as well from now on
    first.signal(signal.SIGINT)
    first.wait()
    wait_until(lambda: len(pids.read_text().split()) == 2)
    living = [one for pid in pids.read_text().split() if (one := process.identify(int(pid))) is not None]
    assert len(living) == 2, "both notifiers still hang"
    assert process.carriers(run_record(home / "run")["run_id"]) == []
    second = spawn.solorun("start", "run", "--", "true", cwd=home)
    assert second.wait() == 0, second.text()
    assert all(process.is_alive(one) for one in living), "the notifiers hung all the while"


def test_a_notifier_that_fails_costs_a_line_and_nothing_else(spawn: Spawner, home: Path) -> None:
    script(home, "echo no route; exit 3")
    child = spawn.solorun("start", "run", "--", "true", cwd=home)
    assert child.wait() == 0
    wait_until(lambda: "notice failed" in events(home / "run"))
    wait_until(lambda: "failed: exit status 3: no route" in (home / "run/training.log").read_text())
    assert run_record(home / "run")["state"] == "completed"


def test_a_refused_start_tells_nobody(spawn: Spawner, home: Path) -> None:
    child = start(spawn, home, STEPS, "forever")
    wait_until(lambda: "ready" in child.text())
    assert spawn.solorun("start", "run", "--", "true", cwd=home).wait() == 3
    child.signal(signal.SIGINT)
    child.wait()
    wait_until(lambda: told(home))
    assert [notice["occasion"] for notice in told(home)] == ["end"]


def test_a_service_of_systemd_waits_for_its_courier_whose_end_it_would_be(spawn: Spawner, home: Path) -> None:
    script(home, f"sleep 1; cat >> {shlex.quote(str(home / 'told'))}")
    code = "import os, sys; os.environ['SYSTEMD_EXEC_PID'] = str(os.getpid()); os.execv(sys.executable, sys.argv[1:])"
    argv = (sys.executable, "-m", "solorun", "start", "run", "--", "true")
    assert spawn.python(code, *argv, cwd=home).wait() == 0
    assert [notice["occasion"] for notice in told(home)] == ["end"]
