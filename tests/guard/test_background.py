"""`solorun start --background`: returns when it is known what became of the run, which outlives every terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from solorun import process

from .stage import (
    HOLDING,
    PYTHON,
    Child,
    Spawner,
    Terminal,
    as_nobody,
    events,
    label_of,
    names,
    quoted,
    run_record,
    snapshot,
    wait_until,
)

PRINTING = """
import sys, time, solorun
with solorun.hold(sys.argv[1]) as run:
    print("first words", flush=True)
    while not run.should_stop:
        time.sleep(0.02)
    print("last words", flush=True)
"""


ATTENTIVE = """
import sys
from solorun import start
from solorun.cli.main import main
start.FIRST_STEPS_S = 60.0  # a busy machine may need longer for a first error than a person is kept waiting
sys.exit(main(sys.argv[1:]))
"""
"""The command, listening for the first moments of a background run until they are over."""


def background(
    spawn: Spawner, results: Path, *command: str | Path, flags: tuple[str, ...] = (), **options: object
) -> Child:
    return spawn.solorun("start", results, "--background", *flags, "--", *command, **options)


def ended_at_once(spawn: Spawner, results: Path, *command: str) -> Child:
    return spawn(
        sys.executable, str(spawn.program("solorun", ATTENTIVE)), "start", str(results), "--background", "--", *command
    )


def started(spawn: Spawner, results: Path) -> Child:
    """A start that has returned: the run holds its directory, and its trainer may still be loading."""
    child = background(spawn, results, sys.executable, spawn.program("trainer.py", PRINTING), results)
    assert child.wait() == 0, child.text()
    return child


def training(spawn: Spawner, results: Path) -> None:
    """A run in the background whose trainer is at work, as all who look after it know."""
    started(spawn, results)
    wait_until(lambda: "first words" in (results / "nohup.out").read_text())
    wait_until(lambda: "adopted" in events(results))


def supervisor_of(results: Path) -> int:
    found: int = json.loads((results / "training.owner.json").read_text())["supervisor"]["pid"]
    return found


def test_it_returns_once_the_run_holds_its_directory_and_tells_how_to_go_on(spawn: Spawner, results: Path) -> None:
    child = started(spawn, results)
    pid = label_of(results)
    assert f"run {run_record(results)['run_id']} holds it, PID {pid}" in child.text()
    assert "watch: solorun attach" in child.text()
    assert "stop:  solorun stop" in child.text()
    assert (results / "training.pid").read_text() == f"{pid}\n"
    assert max(map(len, child.text().splitlines())) < 160


def test_the_raw_output_is_appended_to_nohup_out_and_the_log_is_complete(spawn: Spawner, results: Path) -> None:
    (results / "nohup.out").write_text("an earlier run\n")
    training(spawn, results)
    assert spawn.solorun("stop", results).wait() == 0
    wait_until(lambda: not process.carriers(run_record(results)["run_id"]))
    raw = (results / "nohup.out").read_text()
    assert raw.startswith("an earlier run\nfirst words\nlast words\n")
    assert (results / "training.log").read_text().startswith("first words\nlast words\n")
    assert not (results / "training.pid").exists()


def test_it_survives_a_closed_terminal_and_its_hangup(
    spawn: Spawner, results: Path, terminal: Callable[..., Terminal]
) -> None:
    program = spawn.program("trainer.py", PRINTING)
    shell = terminal("sh", "-i")
    place = quoted(results)
    shell.type(f"{PYTHON} -m solorun start {place} --background -- {PYTHON} {quoted(program)} {place}\n".encode())
    shell.wait_for("stop:  solorun stop")
    wait_until(lambda: "first words" in (results / "training.log").read_text())
    pid = label_of(results)
    supervisor = supervisor_of(results)
    assert os.getsid(supervisor) not in (os.getsid(shell.pid), supervisor)  # no leader: it never gets a terminal again
    os.killpg(os.getsid(shell.pid), signal.SIGHUP)
    os.kill(shell.pid, signal.SIGKILL)
    shell.wait()
    assert label_of(results) == pid
    assert process.identify(pid) is not None
    assert spawn.solorun("stop", results).wait() == 0
    assert "last words" in (results / "training.log").read_text()


def test_a_command_that_dies_without_a_word_is_told_so(spawn: Spawner, results: Path) -> None:
    child = ended_at_once(spawn, results, "sh", "-c", "kill -9 $$")
    assert child.wait() == 137
    assert "killed at once, exit status 137; it wrote nothing" in child.text()


def test_a_command_that_fails_at_once_is_told_with_its_first_error_lines_and_its_status(
    spawn: Spawner, results: Path
) -> None:
    child = ended_at_once(spawn, results, sys.executable, "-c", "print('so far'); import no_such_module")
    assert child.wait() == 1
    assert "crashed at once, exit status 1; its last lines:" in child.text()
    assert "| ModuleNotFoundError: No module named 'no_such_module'" in child.text()
    assert "next: solorun history -n 1 " in child.text()
    assert label_of(results) == 0


def test_a_command_that_cannot_be_executed_is_a_usage_error(spawn: Spawner, results: Path) -> None:
    child = background(spawn, results, "/no/such/program")
    assert child.wait() == 2
    assert "cannot execute '/no/such/program': No such file or directory" in child.text()
    assert "Traceback" not in child.text()


def test_a_refused_start_tells_who_and_leaves_every_file_of_the_live_run_as_it_was(
    spawn: Spawner, results: Path
) -> None:
    training(spawn, results)
    before = snapshot(results)
    child = background(spawn, results, "sh", "-c", "echo never")
    assert child.wait() == 3
    assert f"is held by PID {label_of(results)}" in child.text()
    assert snapshot(results) == before
    assert names(results) == {*before}


def test_a_directory_that_cannot_be_made_is_told(spawn: Spawner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    child = background(spawn, tmp_path / "file", "true")
    assert child.wait() == 1
    assert "is not a directory" in child.text()


def test_what_became_of_it_can_be_read_by_programs(spawn: Spawner, results: Path) -> None:
    child = background(spawn, results, "sleep", "600", flags=("--json",))
    assert child.wait() == 0
    told = json.loads(child.text())
    assert (told["schema"], told["state"], told["pid"]) == (1, "running", label_of(results))
    assert told["run_id"] == run_record(results)["run_id"]
    assert told["supervisor"] == supervisor_of(results)
    os.kill(told["pid"], signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)


def test_a_killed_trainer_leaves_no_lock_when_its_supervisor_lives(spawn: Spawner, results: Path) -> None:
    started(spawn, results)
    os.kill(label_of(results), signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)
    wait_until(lambda: run_record(results)["state"] == "killed")


def test_a_killed_supervisor_does_not_end_the_run(spawn: Spawner, results: Path) -> None:
    started(spawn, results)
    pid = label_of(results)
    os.kill(supervisor_of(results), signal.SIGKILL)
    wait_until(lambda: "first words" in (results / "training.log").read_text())
    again = background(spawn, results, "true")
    assert again.wait() == 3
    assert label_of(results) == pid
    assert spawn.solorun("stop", results).wait() == 0
    assert label_of(results) == 0
    assert events(results).count("ended") == 1


def test_the_command_of_the_settings_is_used_when_none_is_typed(spawn: Spawner, tmp_path: Path) -> None:
    program = spawn.program("trainer.py", HOLDING)
    (tmp_path / "solorun.toml").write_text(
        f"""
        [runs."out/mine"]
        command = [{json.dumps(sys.executable)}, {json.dumps(str(program))}, "out/mine"]
        environment = {{ GREETING = "good morning" }}
        """
    )
    below = tmp_path / "below"
    below.mkdir()
    child = spawn.solorun("start", "../out/mine", "--background", cwd=below)
    assert child.wait() == 0, child.text()
    pid = label_of(tmp_path / "out/mine")
    assert process.cwd(pid) == str(tmp_path)
    assert process.system.environment_value(pid, "GREETING") == "good morning"
    assert spawn.solorun("stop", tmp_path / "out/mine").wait() == 0
    other = spawn.solorun("start", "../out/other", "--background", cwd=below)
    assert other.wait() == 2
    assert "solorun.toml has none for this directory" in other.text()


def test_without_the_right_to_write_nothing_is_started(open_results: Path) -> None:
    from solorun.launch import plan_command
    from solorun.settings import Settings
    from solorun.start import in_background

    plan = plan_command(("true",), Path("/"), {}, "background")
    told = as_nobody(lambda: in_background(plan, open_results, Settings(), None))
    assert told.startswith("DirectoryProblem: ")
    assert "ermission denied" in told
    assert names(open_results) == set()
