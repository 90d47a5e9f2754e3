"""A watchdog at a real directory and a real process, and how it tells the end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import process, watchdog
from solorun.claim import Claim, claim
from solorun.farewell import Ending
from solorun.footprint import Footprint
from solorun.memory import Memory
from solorun.progress import Heartbeat
from solorun.record import RunRecord
from solorun.settings import NotifyEntry, Settings
from solorun.watchdog import Watchdog

from .stage import events, wait_until

DONE = RunRecord(
    "20261123-213000-0a1b2c3d", None, ("train",), "ada", "studio", 4242, 0.0,
    state="completed", exit_code=0, first_step=1, last_step=300, total_steps=300,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kept", "occasion", "text"),
    [
        (
            {},
            "checkpoint_300.bin",
            "end",
            "completed, at step 300 of 300, after 2 h 5 min; newest checkpoint checkpoint_300.bin",
        ),
        (
            {"state": "interrupted", "exit_code": 130, "signal": 2, "why": "SIGINT", "stopped_by": "ada"},
            "",
            "end",
            "interrupted by ada (SIGINT), at step 300 of 300, after 2 h 5 min; no checkpoint",
        ),
        (
            {"state": "crashed", "exit_code": 1, "why": "ValueError: no text", "last_step": None},
            "",
            "crash",
            "crashed: ValueError: no text, after 2 h 5 min; no checkpoint",
        ),
        (
            {"state": "killed", "signal": 9, "why": "SIGKILL", "last_step": 7, "total_steps": None},
            "a\x1bb",
            "crash",
            "killed by SIGKILL, at step 7, after 2 h 5 min; newest checkpoint a\\x1bb",
        ),
        (
            {"state": "killed", "signal": 9, "why": "kernel: Killed process 5", "cause": "out of memory"},
            "",
            "crash",
            "out of memory (kernel: Killed process 5), at step 300 of 300, after 2 h 5 min; no checkpoint",
        ),
    ],
)
def test_an_end_in_one_line(changes: dict[str, object], kept: str, occasion: str, text: str) -> None:
    ending = Ending(replace(DONE, **changes), 7500.0, kept)  # type: ignore[arg-type]
    assert (ending.occasion, ending.text) == (occasion, text)


def test_the_facts_of_an_end() -> None:
    assert Ending(DONE, 7500.04, "checkpoint_300.bin").facts == {
        "state": "completed", "cause": "", "why": "", "stopped_by": "", "exit_code": 0, "signal": None, "step": 300,
        "total": 300, "seconds": 7500.0, "checkpoint": "checkpoint_300.bin",
    }  # fmt: skip


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
    """A process to watch, which does nothing any more."""
    code = "import time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        wait_until(lambda: getattr(process.probe(child.pid), "state", "") == "S")
        yield child
        child.kill()


@pytest.fixture
def held(results: Path, sleeper: subprocess.Popen[bytes]) -> Iterator[Claim]:
    made = claim(results, time.time, 0)
    training = process.identify(sleeper.pid)
    assert training is not None
    made.publish(training, ("train",), supervisor=None, adopted=False)
    yield made
    made.lock.release()


SETTINGS = Settings(watch_every_s=5.0, silent_unknown_s=60.0, silent_floor_s=30.0)


def memory_with(available: int) -> Memory:
    return Memory(total=100, available=available, swap_total=0, swap_used=0, pressure=None, limit=None)


def watching(
    held: Claim,
    clock: Clock,
    read_memory: Callable[[], Memory | None] = lambda: memory_with(50),
    settings: Settings = SETTINGS,
) -> Watchdog:
    """A watchdog on a machine with memory enough, unless told otherwise: others may be short of it here."""
    return Watchdog(held, settings, os.environ, clock, read_memory)


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
    dog = watching(held, clock)
    looked(dog, clock, 300)
    assert log(results).count("WARNING: hangs: the log has not grown") == 1
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
    dog = watching(held, clock)
    looked(dog, clock, 30)
    for step in range(20):
        heart.advance(step, 100)
        looked(dog, clock, 6)
    assert "warned" not in events(results)
    for _ in range(20):
        held.log.write("retrying")
        looked(dog, clock, 6)
    assert "hangs at step 19: no progress in phase training" in log(results)
    heart.close()
    dog.close()


def test_a_suspended_trainer_is_told_at_the_second_look(
    held: Claim, results: Path, clock: Clock, sleeper: subprocess.Popen[bytes]
) -> None:
    dog = watching(held, clock)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: getattr(process.probe(sleeper.pid), "state", "") == "T")
    looked(dog, clock, 11)  # two looks: a moment of suspension is nothing
    assert f"hangs: PID {sleeper.pid} is suspended" in log(results)
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: getattr(process.probe(sleeper.pid), "state", "") != "T")
    looked(dog, clock, 6)
    assert "moves again" in log(results)
    dog.close()


def test_a_machine_that_slept_alarms_nobody(held: Claim, results: Path, clock: Clock) -> None:
    dog = watching(held, clock)
    looked(dog, clock, 20)
    clock.now += 36_000
    looked(dog, clock, 50)
    assert "warned" not in events(results)
    looked(dog, clock, 30)
    assert "warned" in events(results)
    dog.close()


def test_a_disk_without_room_for_the_next_checkpoints_is_told(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = os.statvfs(results)
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: seen)  # others write and delete on this disk meanwhile
    room = seen.f_bavail * seen.f_frsize
    with (results / "checkpoint_7.bin").open("wb") as file:
        file.truncate(min(room, 1 << 43))  # sparse: it takes no room
    dog = watching(held, clock)
    looked(dog, clock, 20)
    assert log(results).count("disk low: room for 1.0 more checkpoints") == 1
    dog.close()


def test_low_memory_is_told_once_and_not_again_while_it_comes_and_goes(
    held: Claim, results: Path, clock: Clock
) -> None:
    answers = itertools.cycle([memory_with(1), memory_with(50)])
    dog = watching(held, clock, lambda: next(answers))
    looked(dog, clock, 40)
    assert log(results).count("WARNING: memory low") == 1
    assert "enough again" not in log(results)
    looked(dog, clock, 620)
    assert log(results).count("solorun: memory is enough again") == 1
    dog.close()


def test_where_looking_at_memory_takes_long_it_is_looked_at_less_often(held: Claim, clock: Clock) -> None:
    asked = []

    def slow() -> Memory:
        asked.append(clock.now)
        time.sleep(0.06)
        return memory_with(50)

    dog = watching(held, clock, slow)
    looked(dog, clock, 30)
    assert 1 <= len(asked) <= 3
    dog.close()


def test_a_run_that_needs_more_for_its_next_save_than_there_is_is_told(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = 50
    monkeypatch.setattr(process, "resident_bytes", lambda _pid: resident)
    heart = Heartbeat(held.lock.fd, held.run_id)
    heart.claim()
    dog = watching(held, clock, lambda: memory_with(20))
    for phase, holds in (("training", 50), ("saving", 80), ("training", 50)):
        resident = holds
        heart.begin(phase)
        looked(dog, clock, 6)
    assert "memory may not last: saving took 30 B on top of the 50 B that the run holds" in log(results)
    heart.close()
    dog.close()


def test_what_an_allocator_kept_is_not_needed_again(sleeper: subprocess.Popen[bytes]) -> None:
    foot = Footprint(list)
    holds = {"first": 0}

    class Member:
        pid = sleeper.pid

    foot._members, foot._found_at = [Member()], 0.0  # type: ignore[list-item]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "resident_bytes", lambda _pid: holds["first"])
        for phase, size in (("training", 10), ("saving", 40), ("training", 40), ("saving", 42), ("training", 42)):
            holds["first"] = size
            foot.sample(phase, 1.0)
    assert foot.growth["saving"] == 2
    assert foot.shortfall(1) is not None
    assert foot.shortfall(10) is None


def test_who_belongs_to_the_run_is_asked_at_most_every_30_s() -> None:
    asked = []
    foot = Footprint(lambda: asked.append(1) or [])  # type: ignore[func-returns-value]
    for tick in range(120):
        foot.sample("training", tick * 0.5)
    assert len(asked) == 2


def test_a_mistake_in_watching_ends_the_watching_and_not_the_run(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = watching(held, clock)
    monkeypatch.setattr("solorun.watchdog.alerts", lambda *_facts: 1 / 0)
    looked(dog, clock, 20)
    assert events(results).count("watching failed") == 1
    dog.close()


def test_missing_apprise_is_said_once(
    held: Claim, results: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    whom = (NotifyEntry(frozenset({"hang", "end"}), (), "", "slack://x"),)
    dog = watching(held, clock, settings=replace(SETTINGS, notify=whom))
    looked(dog, clock, 200)
    dog.ended("completed", exit_code=0, signal=None, why="", seconds=1.0)
    assert log(results).count("pip install 'solorun[notify]'") == 1
    assert "hangs: the log" in log(results)


def test_a_look_that_is_not_due_asks_nothing_and_one_that_is_reads_no_process_table(
    held: Claim, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Microseconds, and well below a millisecond: counted by what is asked, since a busy machine has its own time."""
    dog = watching(held, clock)
    looked(dog, clock, 6)
    asked: list[str] = []

    def count(where: object, name: str) -> None:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *words: asked.append(name) or real(*words))

    for where, name in (
        (watchdog, "read_progress"), (watchdog, "alerts"), (watchdog.disk, "read"), (process, "probe"),
        (process.system, "pids"),
    ):  # fmt: skip
        count(where, name)
    for _ in range(1000):
        dog.look()
    assert asked == []
    for _ in range(5):
        clock.now += SETTINGS.watch_every_s
        dog.look()
    assert asked.count("alerts") == 5
    assert set(asked) == {"read_progress", "alerts", "read", "probe"}
    dog.close()
