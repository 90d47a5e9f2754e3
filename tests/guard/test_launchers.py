"""Starts out of odd places: whatever a launcher leaves to us, what is said is true, and the run can be stopped."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from solorun import process, stop, supervisor
from solorun.errors import Held, SolorunError
from solorun.stop import Stopped, StopPolicy

from .stage import DEADLINE_S, HOLDING, Child, Spawner, label_of, names, wait_until

PATIENT = StopPolicy(DEADLINE_S)
AS_LAUNCHED = """
import os, signal, sys
polite = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
if sys.argv[1] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, polite)
for number in polite if sys.argv[1] == "ignored" else ():
    signal.signal(number, signal.SIG_IGN)
if sys.argv[1] == "closed":
    os.closerange(0, 3)
bare = {"SOLORUN_STATE": os.environ["SOLORUN_STATE"]}  # not the registry of the person who tests
os.execve(sys.executable, [sys.executable, *sys.argv[2:]], bare if sys.argv[1] == "bare" else os.environ)
"""
"""Becomes `python ARGUMENTS` in the surroundings that its first argument names."""


def launched(spawn: Spawner, how: str, results: Path, *command: str) -> Child:
    words = ("-m", "solorun", "start", results, "--background", "--", *command)
    # By its place, not by an environment, which "bare" takes away; `-m` looks into the working directory.
    return spawn.python(AS_LAUNCHED, how, *words, cwd=Path(process.__file__).parents[2])


@pytest.mark.parametrize("how", ["blocked", "ignored", "closed", "bare"])
def test_a_start_is_told_truly_and_its_run_can_be_stopped_however_it_was_launched(
    spawn: Spawner, results: Path, how: str
) -> None:
    child = launched(spawn, how, results, "sleep", "600")
    assert child.wait() == 0, child.text()
    wait_until(lambda: label_of(results))
    sleeper = process.identify(label_of(results))
    assert sleeper is not None
    assert how == "closed" or f"PID {sleeper.pid}" in child.text()
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert not process.is_alive(sleeper)
    wait_until(lambda: "training.lock" not in names(results))


def test_a_trainer_without_a_guard_hears_a_stop_that_its_launcher_had_blocked(spawn: Spawner, results: Path) -> None:
    child = spawn.python(AS_LAUNCHED, "blocked", spawn.program("trainer.py", HOLDING), results)
    wait_until(lambda: label_of(results) == child.pid)
    child.signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM


def test_a_fifo_in_the_logs_place_fails_the_start_at_once_and_locks_nothing(spawn: Spawner, results: Path) -> None:
    os.mkfifo(results / "training.log")
    child = spawn.solorun("start", results, "--background", "--", "true")
    assert child.wait() == SolorunError.exit_code
    assert child.text().startswith("solorun: cannot ")
    assert names(results) == {"training.log"}
    (results / "training.log").unlink()
    assert spawn.solorun("start", results, "--", "true").wait() == 0


def test_what_a_run_starts_in_the_background_elsewhere_is_no_part_of_it(spawn: Spawner, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    start = (sys.executable, "-m", "solorun", "start")
    child = spawn.solorun("start", outer, "--", *start, inner, "--background", "--", "sleep", "600")
    assert child.wait() == 0, child.text()  # and not held until the inner one ends
    assert names(outer) & {"training.lock", "training.owner.json"} == set()
    assert label_of(inner)
    assert stop.stop(outer, PATIENT) == stop.WasNotRunning()
    assert process.probe(label_of(inner))
    assert isinstance(stop.stop(inner, PATIENT), Stopped)


def test_a_tmux_server_that_a_run_starts_is_no_part_of_it(spawn: Spawner, tmp_path: Path) -> None:
    outer, inner, socket = tmp_path / "outer", tmp_path / "inner", Path(f"/tmp/solorun-{os.getpid()}.sock")
    start = (sys.executable, "-m", "solorun", "start")
    command = (*start, str(inner), "--tmux", "--", "sleep", "600")
    child = spawn.solorun("start", outer, "--", *command, env={"SOLORUN_TMUX_SOCKET": str(socket)})
    try:
        assert child.wait() == 0, child.text()
        assert names(outer) & {"training.lock", "training.owner.json"} == set()
        assert isinstance(stop.stop(inner, PATIENT), Stopped)
    finally:
        spawn("sh", "-c", f"tmux -S {shlex.quote(str(socket))} kill-server").wait()
        socket.unlink(missing_ok=True)


STRAY = """
import os, sys, time
os.setsid()
if os.fork():
    os._exit(0)
os.closerange(3, 100)
print("stray", os.getpid(), flush=True)
time.sleep(600)
"""


def test_an_orphan_that_lost_its_environment_and_still_writes_here_keeps_the_directory_held(
    spawn: Spawner, results: Path
) -> None:
    code = f"import os, sys; os.posix_spawn(sys.executable, [sys.executable, '-c', {STRAY!r}], {{}})"
    child = spawn.solorun("start", results, "--", sys.executable, "-c", code)
    child.wait_for("processes of it still run")
    said = wait_until(lambda: re.search(r"^stray (\d+)\n", child.text(), re.MULTILINE), what=child.text)
    stray = process.identify(int(said[1]))
    assert stray is not None
    wait_until(lambda: label_of(results) == stray.pid)
    assert spawn.solorun("start", results, "--", "true").wait() == Held.exit_code
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == 0
    assert not process.is_alive(stray)
    assert "training.lock" not in names(results)


def test_an_orphan_whose_parent_ended_while_the_table_was_read_is_found_by_a_second_look(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, time; log = open(sys.argv[1], 'a'); print('up', flush=True); time.sleep(600)"
    child = spawn.python(code, results / "training.log")
    child.wait_for("up")
    stray = process.identify(child.pid)
    assert stray is not None
    looks = [[], [stray]]  # forked after the PIDs were listed, by a parent that was gone when its turn came
    monkeypatch.setattr(process, "descendants", lambda _whose: looks.pop(0))
    watching = object.__new__(supervisor._Supervisor)
    watching.me = process.identify_self()
    lock = SimpleNamespace(current_path=lambda: str(results))
    watching.claim = SimpleNamespace(run_id=f"run-{spawn.mark}", lock=lock)  # type: ignore[assignment]
    assert watching._survivors() == [stray]
