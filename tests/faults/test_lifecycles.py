"""Random lives of results directories; and what they first broke, by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from solorun import process, status
from solorun.settings import Settings
from tests.faults.lifecycles import attack
from tests.guard.stage import Spawner, wait_until

FORKING = """
    import os, signal, sys, solorun
    holding = solorun.hold(sys.argv[1], settle_s=0)
    run = holding.__enter__()
    worker = os.fork()
    if worker == 0:
        signal.pause()
    print("forked", worker, flush=True)
    if sys.argv[2] == "leaves":
        holding.__exit__(None, None, None)
        print("left", flush=True)
    signal.pause()
"""


def state(directory: Path) -> str:
    """What status calls a directory."""
    seen, _ = status.examine(directory, status.wall_clock(), Settings(), window_s=0.0)
    return type(seen).__name__


def test_whatever_happens_the_promises_hold() -> None:
    tally = attack(20261126, 0.02)
    assert not tally.failures, tally
    assert tally.cases >= 200, tally


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell who has a flock")
@pytest.mark.parametrize("how", ["leaves", "dies"])
def test_a_forked_worker_that_keeps_the_lock_of_a_run_that_is_over_is_an_orphan_and_not_idle(
    spawn: Spawner, results: Path, how: str
) -> None:
    trainer = spawn.python(FORKING, results, how)
    trainer.wait_for("left" if how == "leaves" else "forked")
    if how == "dies":
        trainer.signal(9)
        trainer.wait()
    wait_until(lambda: state(results) == "Orphaned")
    worker = int(trainer.text().split()[1])
    stop = spawn.solorun("stop", results)
    assert stop.wait() == 0, stop.text()
    assert not os.path.exists(f"/proc/{worker}") or process.probe(worker) == process.system.Gone()
    assert state(results) in ("Idle", "Left")


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="takes a PID namespace, and root to make one")
def test_in_a_container_too_a_stop_finds_the_worker_that_keeps_a_dead_trainers_lock(
    spawn: Spawner, results: Path
) -> None:
    program = spawn.program(
        "contained.py",
        f"""
        import os, signal, subprocess, sys, time
        code = {FORKING!r}
        import textwrap
        trainer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), sys.argv[1], "dies"],
                                   stdout=subprocess.PIPE)
        trainer.stdout.readline()
        trainer.kill()
        trainer.wait()
        sys.exit(subprocess.call([sys.executable, "-m", "solorun", "stop", sys.argv[1]]))
    """,
    )
    inside = spawn("unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(program), str(results))
    assert inside.wait() == 0, inside.text()
    if "unshare failed" in inside.text():
        pytest.skip("no PID namespaces here")
    assert "no run to stop" not in inside.text()
    assert "ended" in inside.text() or "stopped" in inside.text()


FIRST = """
    import os, signal, subprocess, sys
    import solorun
    with solorun.hold(sys.argv[1], settle_s=0) as run:
        outside = {name: value for name, value in os.environ.items() if name != "SOLORUN_RUN_ID"}
        subprocess.Popen([sys.executable, "-m", "solorun", "stop", sys.argv[1]], env=outside, start_new_session=True)
        while not run.should_stop:
            signal.sigtimedwait([], 0.05)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="takes a PID namespace, and root to make one")
def test_a_trainer_that_is_pid_1_hears_a_stop(spawn: Spawner, results: Path) -> None:
    contained = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(spawn.program("first.py", FIRST)))
    inside = spawn(*contained, str(results))
    code = inside.wait()
    if "unshare failed" in inside.text():
        pytest.skip("no PID namespaces here")
    assert code == 143, inside.text()
    assert "asking PID 1 to stop (SIGTERM)" in inside.text()
    assert state(results) == "Idle"
