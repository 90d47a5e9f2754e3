"""Whatever dies: what `solorun status` says of it, and that no person has to touch a lock before the next start.

The table of docs/procedure.md ("What dies") row by row. A cut SSH connection stands in test_hosts.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solorun import process
from tests.guard.stage import PYTHON, Child, Spawner, Terminal, events, label_of, run_record, wait_until

TRAINER = """
import os, sys, time, solorun
directory = sys.argv[1]
with solorun.hold(directory, announce=lambda line: print(line, flush=True)) as run:
    print("holding", flush=True)
    step = 0
    while not run.should_stop:
        step += 1
        run.progress(step, 1_000_000)
        time.sleep(0.01)
    with run.phase("saving"):
        with open(os.path.join(directory, f"checkpoint_{step}.pt"), "w") as file:
            file.write("weights")
"""


def begin(spawn: Spawner, results: Path, *flags: str, **options: Any) -> None:
    program = spawn.program("trainer.py", TRAINER)
    child = spawn.solorun("start", results, *flags, "--", sys.executable, program, results, **options)
    assert child.wait() == 0, child.text()
    wait_until(lambda: "holding" in (results / "training.log").read_text())


def status(spawn: Spawner, results: Path) -> dict[str, Any]:
    child = spawn.solorun("status", "--json", results)
    assert child.wait() == 0
    found: dict[str, Any] = json.loads(child.text())["runs"][0]
    return found


def supervisor_of(results: Path) -> int:
    found: int = json.loads((results / "training.owner.json").read_text())["supervisor"]["pid"]
    return found


def starts_again(spawn: Spawner, results: Path) -> Child:
    """The next start needs no hand."""
    child = spawn.solorun("start", results, "--", "sh", "-c", "echo the next run")
    assert child.wait() == 0, child.text()
    assert label_of(results) == 0
    return child


def checkpoints(results: Path) -> list[str]:
    return sorted(path.name for path in results.glob("checkpoint_*"))


def test_the_terminal_of_a_foreground_run_dies(
    spawn: Spawner, results: Path, terminal: Callable[..., Terminal]
) -> None:
    program = spawn.program("trainer.py", TRAINER)
    shell = terminal("sh", "-i")
    directory = shlex.quote(str(results))
    shell.type(f"{PYTHON} -m solorun start {directory} -- {PYTHON} {shlex.quote(str(program))} {directory}\n".encode())
    wait_until(lambda: label_of(results))
    wait_until(lambda: "holding" in (results / "training.log").read_text())
    wait_until(lambda: status(spawn, results)["step"])
    shell.hang_up()
    wait_until(lambda: label_of(results) == 0)
    wait_until(lambda: run_record(results)["state"] == "interrupted")
    found = status(spawn, results)
    assert (found["state"], found["ended"]) == ("idle", "interrupted")
    assert run_record(results)["signal"] == signal.SIGHUP
    assert checkpoints(results)
    starts_again(spawn, results)


def test_the_terminal_of_a_background_start_dies(spawn: Spawner, results: Path) -> None:
    begin(spawn, results, "--background", start_new_session=True)
    pid = label_of(results)
    wait_until(lambda: (found := status(spawn, results))["state"] == "running" and found["step"])
    assert label_of(results) == pid
    assert spawn.solorun("stop", results).wait() == 0
    starts_again(spawn, results)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_tmux_server_dies(spawn: Spawner, results: Path) -> None:
    socket = Path("/tmp") / f"solorun-deaths-{os.getpid()}"
    begin(spawn, results, "--tmux", env={"SOLORUN_TMUX_SOCKET": str(socket)})
    wait_until(lambda: status(spawn, results)["step"])
    server = process.system.parent(supervisor_of(results))
    assert "tmux" in process.argv(server)[0]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)
    socket.unlink(missing_ok=True)
    wait_until(lambda: run_record(results)["state"] == "interrupted")
    found = status(spawn, results)
    assert (found["state"], found["ended"]) == ("idle", "interrupted")
    assert checkpoints(results)
    starts_again(spawn, results)


def test_the_supervisor_dies(spawn: Spawner, results: Path) -> None:
    begin(spawn, results, "--background")
    pid = label_of(results)
    os.kill(supervisor_of(results), signal.SIGKILL)
    wait_until(lambda: process.identify(supervisor_of(results)) is None)
    before = status(spawn, results)["step"] or 0
    wait_until(lambda: (found := status(spawn, results))["state"] == "running" and found["step"] > before)
    refused = spawn.solorun("start", results, "--", "true")
    assert refused.wait() == 3
    assert label_of(results) == pid
    assert spawn.solorun("stop", results).wait() == 0
    assert "supervisor was gone" in events(results)
    assert checkpoints(results)
    starts_again(spawn, results)


def test_the_trainer_dies(spawn: Spawner, results: Path) -> None:
    begin(spawn, results, "--background")
    os.kill(label_of(results), signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)
    wait_until(lambda: run_record(results)["state"] == "killed")
    found = status(spawn, results)
    assert (found["state"], found["ended"]) == ("idle", "killed")
    starts_again(spawn, results)


def test_supervisor_and_trainer_die(spawn: Spawner, results: Path) -> None:
    begin(spawn, results, "--background")
    pids = (supervisor_of(results), label_of(results))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(process.identify(pid) is None for pid in pids))
    found = status(spawn, results)
    assert (found["state"], found["ended"]) == ("stale", "lost")
    assert f"PID {pids[1]} is dead" in found["detail"]
    starts_again(spawn, results)
    assert "taken over" in events(results)
    assert "found dead" in events(results)


def test_the_machine_restarts(spawn: Spawner, results: Path) -> None:
    """A record of another boot of this machine, with a PID that lives again: what a power cut leaves."""
    begin(spawn, results, "--background")
    pids = (supervisor_of(results), label_of(results))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(process.identify(pid) is None for pid in pids))
    record = json.loads((results / "training.owner.json").read_text())
    here = {**record["process"]["here"], "boot": "0f0e0d0c-0000-4000-8000-000000000001"}
    reborn = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    reborn.wait_for("up")
    record["process"] |= {"here": here, "pid": reborn.pid}
    record["supervisor"] |= {"here": here}
    (results / "training.owner.json").write_text(json.dumps(record))
    (results / "training.lock").write_text(f"{reborn.pid}\n")
    found = status(spawn, results)
    assert found["state"] == "stale"
    assert "the machine was restarted" in found["detail"]
    starts_again(spawn, results)
    assert reborn.popen.poll() is None  # whoever has the PID now was not touched
