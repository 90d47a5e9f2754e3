"""macOS, as far as Linux can stand in for it: every room loads, and a run is started, seen, stopped and recovered."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from solorun import forwarded
from tests.guard.stage import HOLDING, Child, Spawner, a_dead_pid, label_of, run_record, wait_until

AS_A_MAC = (sys.executable, str(Path(__file__).with_name("as_a_mac.py")))
SAID = {
    "sysctl": "hw.memsize: 34359738368\nvm.swapusage: total = 2048.00M  used = 1024.00M  free = 1024.00M\n"
    "kern.memorystatus_vm_pressure_level: 1",
    "vm_stat": "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:   900000.\n"
    "Pages inactive:   90000.\nPages speculative:   9000.",
    "memory_pressure": "System-wide memory free percentage: 57%",
}


class Mac:
    """Commands as on a Mac, in a directory of their own."""

    def __init__(self, spawn: Spawner, home: Path) -> None:
        self.spawn, self.home = spawn, home
        for name, said in SAID.items():
            (home / name).write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
            (home / name).chmod(0o755)
        self.env = {"PATH": f"{home}:{os.environ['PATH']}", "SOLORUN_STATE": str(home / "state")}
        self.results = home / "results" / "my run"
        self.results.mkdir(parents=True)

    def starts(self, *words: str | Path) -> Child:
        return self.spawn(*AS_A_MAC, *map(str, words), env=self.env, cwd=self.home)

    def says(self, *words: str | Path, code: int | None = 0) -> str:
        child = self.starts("-m", "solorun", *words)
        assert child.wait(60) == code or code is None, child.text()
        assert "Traceback" not in child.text()
        return child.text()

    def row(self) -> dict[str, Any]:
        (row,) = json.loads(self.says("status", "--json", self.results))["runs"]
        assert isinstance(row, dict)
        return row

    def trainer(self) -> Path:
        return self.spawn.program("trainer.py", HOLDING)


@pytest.fixture
def mac(spawn: Spawner, tmp_path: Path) -> Mac:
    return Mac(spawn, tmp_path)


def test_every_room_loads_without_what_linux_alone_has(mac: Mac) -> None:
    code = """
    import importlib, pkgutil, solorun
    names = [room.name for room in pkgutil.walk_packages(solorun.__path__, "solorun.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    from solorun import process
    print(process.system.__name__, len(names))
    """
    child = mac.starts(mac.spawn.program("load.py", code))
    assert child.wait(60) == 0, child.text()
    room, count = child.text().split()
    assert room == "solorun.process.darwin"
    assert int(count) > 60


def test_a_run_is_started_seen_and_stopped(mac: Mac) -> None:
    started = mac.starts("-m", "solorun", "start", mac.results, "--", *AS_A_MAC, mac.trainer(), mac.results)
    started.wait_for("holding")
    row = mac.row()
    assert (row["state"], row["pid"], row["host"]) == ("running", label_of(mac.results), "studio")
    assert "is held by PID" in mac.says("start", mac.results, "--", "true", code=3)
    assert "NOT SAFE" in mac.says("check", mac.results, code=4)
    assert "stopped" in mac.says("stop", mac.results)
    started.wait()
    assert run_record(mac.results)["state"] == "interrupted"
    assert label_of(mac.results) == 0
    assert "interrupted" in mac.says("history")


def test_a_killed_run_leaves_a_stale_label_that_check_clears(mac: Mac) -> None:
    child = mac.starts(mac.trainer(), mac.results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    assert mac.row()["state"] == "stale"
    assert "stale lock cleared" in mac.says("check", mac.results)
    assert label_of(mac.results) == 0


BLIND = """
import errno, os, sys, psutil
def refused(*_):
    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
psutil.Process.environ = refused
from solorun.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""solorun, while the system has no file left to look at a process with."""

LEAVING = """
import subprocess, sys, time, solorun
with solorun.hold(sys.argv[1], settle_s=0) as run:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("holding", flush=True)
    time.sleep(600)
"""
"""A trainer with a worker that outlives it."""


def test_no_run_starts_beside_a_live_worker_when_processes_cannot_be_looked_at(mac: Mac) -> None:
    child = mac.starts(mac.spawn.program("leaving.py", LEAVING), mac.results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    start = ("start", mac.results, "--", "true")
    blind = mac.starts(mac.spawn.program("blind.py", BLIND), *start)
    assert blind.wait(60) == 1, blind.text()
    assert "too many open files on this machine" in blind.text()
    assert "Traceback" not in blind.text()
    assert "end them: solorun stop" in mac.says(*start, code=3)


def test_recover_clears_what_a_dead_run_left(mac: Mac) -> None:
    (mac.results / "training.lock").write_text(f"{a_dead_pid()}\n")
    assert "STALE LOCK" in mac.says("recover", "--yes", mac.results)
    assert label_of(mac.results) == 0


def test_a_background_run_goes_on_and_its_log_can_be_read(mac: Mac) -> None:
    said = mac.says("start", mac.results, "--background", "--", *AS_A_MAC, mac.trainer(), mac.results)
    assert "it goes on when you log out" in said
    wait_until(lambda: "holding" in mac.says("logs", mac.results))
    assert "stopped" in mac.says("stop", mac.results)


def test_a_suspended_run_is_hung_and_a_stop_wakes_it(mac: Mac) -> None:
    child = mac.starts(mac.trainer(), mac.results)
    child.wait_for("holding")
    child.signal(signal.SIGSTOP)
    wait_until(lambda: mac.row()["state"] == "hung")
    reaper = threading.Thread(target=child.wait)
    reaper.start()
    assert "stopped" in mac.says("stop", mac.results)
    reaper.join()
    assert run_record(mac.results)["state"] == "interrupted"


def test_a_lost_connection_is_asked_for_since_a_mac_does_not_tell_it_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Poll:
        def register(self, _stream: int, events: int) -> None:
            asked.append(events)

        def poll(self) -> list[tuple[int, int]]:
            return [(1, select.POLLNVAL)]

    monkeypatch.setattr(forwarded.select, "poll", Poll)
    forwarded._watch(1, 0)
    assert asked[0] & select.POLLHUP


def test_the_help_and_an_empty_machine(mac: Mac) -> None:
    assert "usage: solorun" in mac.says("--help")
    assert "my run" not in mac.says("status")
    checked = mac.says("check", code=None)  # whoever else trains on this machine decides on the exit status
    assert "mps (Apple GPU)" in checked
    told = "15 GiB of 32 GiB free, swap 1.0 GiB of 2.0 GiB, pressure 43 %"
    # Whom the guard asks for it is given 2 s, and a busy machine may not get round to that at once.
    wait_until(lambda: told in mac.says("check", code=None))
