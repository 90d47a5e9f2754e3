"""What a supervisor warns of, and how it tells the end: tables, and a watchdog at a real directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import process
from solorun.claim import Claim, claim
from solorun.progress import Heartbeat
from solorun.settings import NotifyEntry, Settings
from solorun.watchdog import Ending, Observation, Watchdog, alerts

from .stage import events, wait_until

GIB = 1 << 30
WELL = Observation(
    pid=4242,
    suspended=False,
    quiet_s=5.0,
    usual_s=90.0,
    phase="training",
    step=12,
    free=100 * GIB,
    checkpoint=GIB,
)
NOTHING: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("changes", "occasions"),
    [
        ({}, []),
        ({"quiet_s": 90.0}, []),
        ({"quiet_s": 90.1}, ["hang"]),
        ({"suspended": True}, ["hang"]),
        ({"free": 2 * GIB}, []),
        ({"free": 2 * GIB - 1}, ["disk"]),
        ({"free": 0, "checkpoint": 0}, []),
        ({"quiet_s": 100.0, "free": 0}, ["hang", "disk"]),
    ],
)
def test_what_is_warned_of(changes: dict[str, object], occasions: list[str]) -> None:
    found = alerts(replace(WELL, **changes), NOTHING, Settings())  # type: ignore[arg-type]
    assert [alert.occasion for alert in found.new] == occasions
    assert found.over == NOTHING


@pytest.mark.parametrize(
    ("changes", "told", "over"),
    [
        ({"quiet_s": 100.0}, {"hang"}, set()),
        ({}, {"hang"}, {"hang"}),
        ({"free": GIB}, {"disk"}, set()),
        ({"free": 2 * GIB}, {"disk"}, set()),
        ({"free": 3 * GIB}, {"disk"}, {"disk"}),
        ({"free": 3 * GIB}, {"disk", "hang"}, {"disk", "hang"}),
    ],
)
def test_a_warning_is_told_once_until_it_has_passed_by_a_margin(
    changes: dict[str, object], told: set[str], over: set[str]
) -> None:
    found = alerts(replace(WELL, **changes), frozenset(told), Settings())  # type: ignore[arg-type]
    assert found.new == ()
    assert found.over == over


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"quiet_s": 720.0},
            "may hang at step 12: no progress in phase training for 12 min (usual is under 90 s), PID 4242",
        ),
        (
            {"quiet_s": 400.0, "usual_s": 300.0, "phase": "", "step": None},
            "may hang: the log has not grown for 6 min (usual is under 5 min), PID 4242",
        ),
        ({"suspended": True}, "hangs: PID 4242 is suspended (state T); kill -CONT 4242 wakes it"),
        (
            {"free": GIB * 3 // 2},
            "disk low: room for 1.5 more checkpoints (1.5 GiB left, the newest checkpoint has 1.0 GiB)",
        ),
    ],
)
def test_a_warning_says_what_was_seen(changes: dict[str, object], text: str) -> None:
    (alert,) = alerts(replace(WELL, **changes), NOTHING, Settings()).new  # type: ignore[arg-type]
    assert alert.text == text


DONE = Ending("completed", 0, None, "", 7500.0, 300, 300, "checkpoint_300.bin")


@pytest.mark.parametrize(
    ("ending", "occasion", "text"),
    [
        (DONE, "end", "completed at step 300 of 300 after 2 h 5 min; newest checkpoint checkpoint_300.bin"),
        (
            replace(DONE, state="interrupted", exit_code=130, signal=2, why="SIGINT", step=12),
            "end",
            "interrupted at step 12 of 300 after 2 h 5 min (SIGINT); newest checkpoint checkpoint_300.bin",
        ),
        (
            Ending("crashed", 1, None, "ValueError: no such text", 3.0, None, None, ""),
            "crash",
            "crashed after 3 s (exit status 1: ValueError: no such text); no checkpoint",
        ),
        (
            Ending("killed", 137, 9, "SIGKILL", 3.0, 7, None, ""),
            "crash",
            "killed at step 7 after 3 s (SIGKILL); no checkpoint",
        ),
        (
            Ending("killed", 137, 9, "out of memory", 3.0, 7, None, ""),
            "crash",
            "killed at step 7 after 3 s (SIGKILL: out of memory); no checkpoint",
        ),
    ],
)
def test_an_end_in_one_line(ending: Ending, occasion: str, text: str) -> None:
    assert (ending.occasion, ending.text) == (occasion, text)


# At a real directory, with a clock of our own.


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process to watch."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def held(results: Path, sleeper: subprocess.Popen[bytes]) -> Iterator[Claim]:
    made = claim(results, time.time, 0)
    training = process.identify(sleeper.pid)
    assert training is not None
    made.publish(training, ("train",), supervisor=None, adopted=False)
    yield made
    made.lock.release()


SETTINGS = Settings(watch_every_s=5.0, silent_unknown_s=60.0, silent_floor_s=30.0)


def looked(dog: Watchdog, clock: Clock, seconds: float) -> None:
    """Look at every tick of so many seconds."""
    for _ in range(int(seconds)):
        clock.now += 1
        dog.look()


def log(results: Path) -> str:
    return (results / "training.log").read_text()


def test_a_silent_log_is_told_once_and_the_warning_does_not_make_it_look_alive(
    held: Claim, results: Path, clock: Clock
) -> None:
    held.log.write("begun")
    os.utime(results / "training.log", (1, 1))
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    looked(dog, clock, 300)
    assert log(results).count("WARNING: may hang: the log has not grown") == 1
    assert (results / "training.log").stat().st_mtime == 1
    assert events(results).count("warned") == 1
    held.log.write("going on")
    looked(dog, clock, 6)
    assert "solorun: the run moves again\n" in log(results)
    assert events(results)[-1] == "passed"
    dog.close()


def test_a_heartbeat_counts_and_the_log_does_not(held: Claim, results: Path, clock: Clock) -> None:
    heart = Heartbeat(held.lock.fd, held.run_id)
    heart.claim()
    heart.finish("training", 1.0)
    heart.begin("training")
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    looked(dog, clock, 30)
    for step in range(20):
        heart.advance(step, 100)
        looked(dog, clock, 6)
    assert "warned" not in events(results)
    for _ in range(20):
        held.log.write("retrying")
        looked(dog, clock, 6)
    assert "may hang at step 19: no progress in phase training" in log(results)
    heart.close()
    dog.close()


def test_a_suspended_trainer_is_told_at_once(
    held: Claim, results: Path, clock: Clock, sleeper: subprocess.Popen[bytes]
) -> None:
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: getattr(process.probe(sleeper.pid), "state", "") == "T")
    looked(dog, clock, 6)
    assert f"hangs: PID {sleeper.pid} is suspended" in log(results)
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: getattr(process.probe(sleeper.pid), "state", "") != "T")
    looked(dog, clock, 6)
    assert "moves again" in log(results)
    dog.close()


def test_a_machine_that_slept_alarms_nobody(held: Claim, results: Path, clock: Clock) -> None:
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    looked(dog, clock, 20)
    clock.now += 36_000
    looked(dog, clock, 50)
    assert "warned" not in events(results)
    looked(dog, clock, 20)
    assert "warned" in events(results)
    dog.close()


def test_a_disk_without_room_for_the_next_checkpoints_is_told(held: Claim, results: Path, clock: Clock) -> None:
    room = os.statvfs(results).f_bavail * os.statvfs(results).f_frsize
    with (results / "checkpoint_7.bin").open("wb") as file:
        file.truncate(min(room, 1 << 43))  # sparse: it takes no room
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    looked(dog, clock, 20)
    assert log(results).count("disk low: room for") == 1
    dog.close()


def test_a_mistake_in_watching_ends_the_watching_and_not_the_run(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    monkeypatch.setattr("solorun.watchdog.alerts", lambda *_facts: 1 / 0)
    looked(dog, clock, 20)
    assert events(results).count("watching failed") == 1
    dog.close()


def test_missing_apprise_is_said_once(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    whom = (NotifyEntry(frozenset({"hang", "end"}), (), "", "slack://x"),)
    dog = Watchdog(held, replace(SETTINGS, notify=whom), os.environ, clock)
    looked(dog, clock, 200)
    dog.ended("completed", exit_code=0, signal=None, why="", seconds=1.0)
    assert log(results).count("pip install 'solorun[notify]'") == 1
    assert "may hang" in log(results)


def test_a_look_that_is_not_due_costs_microseconds(held: Claim, clock: Clock) -> None:
    dog = Watchdog(held, SETTINGS, os.environ, clock)
    looked(dog, clock, 6)
    began = time.perf_counter()
    for _ in range(1000):
        dog.look()
    assert (time.perf_counter() - began) / 1000 < 0.001
    costs = []
    for _ in range(20):
        clock.now += 5
        began = time.perf_counter()
        dog.look()
        costs.append(time.perf_counter() - began)
    print(f"a look that is due: {min(costs) * 1e6:.0f} us")
    assert min(costs) < 0.001
    dog.close()
