"""The supervisor: guards any command, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import solorun
from solorun import process, supervisor
from solorun.errors import BadUsage, DirectoryProblem
from solorun.handshake import Listener, failure, teller
from solorun.launch import plan_command
from solorun.lock import Busy, enter
from solorun.start import await_start
from solorun.stopping import SAME_REQUEST_S

from .stage import PYTHON, Child, Spawner, Terminal, events, label_of, names, quoted, run_record, snapshot, wait_until

LOG = "training.log"


def log(results: Path) -> str:
    path = results / LOG
    return path.read_text() if path.exists() else ""


def guarded(spawn: Spawner, results: Path, *argv: str | Path, **options: object) -> Child:
    """A supervisor whose command has said `ready`."""
    child = spawn.solorun("start", results, "--", *argv, **options)
    wait_until(lambda: "ready\n" in log(results) or child.popen.poll() is not None)
    assert "ready\n" in log(results), child.text()
    return child


WAITING = """
import signal, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda n, f: (seen.append(n), print("got", signal.Signals(n).name, flush=True)))
print("ready", flush=True)
end = time.monotonic() + 60
while not seen and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
print("signals", len(seen), flush=True)
"""


@pytest.mark.parametrize("code", [0, 1, 7, 130, 255])
def test_the_commands_exit_status_is_passed_on(spawn: Spawner, results: Path, code: int) -> None:
    child = spawn.solorun("start", results, "--", "sh", "-c", f"exit {code}")
    assert child.wait() == code
    record = run_record(results)
    state = {0: "completed", 130: "interrupted"}.get(code, "crashed")
    assert (record["state"], record["exit_code"]) == (state, code)
    assert not names(results) & {"training.lock", "training.owner.json"}
    assert log(results) == "Released lock\n"


@pytest.mark.parametrize(
    ("number", "state"),
    [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "killed"), (signal.SIGTERM, "interrupted")],
)
def test_a_command_that_dies_of_a_signal_ends_with_128_and_the_signal(
    spawn: Spawner, results: Path, number: signal.Signals, state: str
) -> None:
    child = spawn.solorun("start", results, "--", "sh", "-c", f"kill -{int(number)} $$")
    assert child.wait() == 128 + number
    record = run_record(results)
    assert (record["state"], record["exit_code"], record["signal"], record["why"]) == (
        state, 128 + number, number, number.name,
    )  # fmt: skip


def test_a_command_that_cannot_be_executed_is_a_usage_error_with_its_reason(spawn: Spawner, results: Path) -> None:
    child = spawn.solorun("start", results, "--", "no-such-program-here")
    assert child.wait() == 2
    assert "cannot execute 'no-such-program-here': No such file or directory" in child.text()
    assert "Traceback" not in child.text()
    record = run_record(results)
    assert (record["state"], record["exit_code"]) == ("crashed", 127)
    assert label_of(results) == 0


def test_no_command_is_a_usage_error_and_touches_nothing(spawn: Spawner, tmp_path: Path) -> None:
    child = spawn.solorun("start", tmp_path / "new")
    assert child.wait() == 2
    assert "no command was given" in child.text()
    assert not (tmp_path / "new").exists()


def test_a_plan_leaves_the_guards_own_variables_out(tmp_path: Path) -> None:
    plan = plan_command(("t",), tmp_path, {"SOLORUN_RUN_ID": "x", "SOLORUN_LOCK_FD": "3", "A": "b"}, None)
    assert dict(plan.env) == {"A": "b"}
    with pytest.raises(BadUsage):
        plan_command((), tmp_path, {}, None)
    with pytest.raises(DirectoryProblem, match="gone"):
        plan_command(("t",), tmp_path / "gone", {}, None)


def test_while_the_command_runs_label_and_record_name_it(spawn: Spawner, results: Path) -> None:
    child = guarded(spawn, results, sys.executable, "-c", WAITING)
    pid = label_of(results)
    assert process.argv(pid)[-1] == WAITING
    assert enter(results) == Busy()
    child.signal(signal.SIGINT)
    child.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_polite_signal_is_forwarded_once(spawn: Spawner, results: Path, number: signal.Signals) -> None:
    for attempt in range(10):
        place = results / str(attempt)
        child = guarded(spawn, place, sys.executable, "-c", WAITING)
        began = time.monotonic()
        child.signal(number)
        child.signal(number)  # as `timeout` and shells do: to the process, and to its group
        at_once = time.monotonic() - began < SAME_REQUEST_S / 2
        assert child.wait() == 0
        if at_once:  # else we were held up between the two, and they are two requests
            break
    assert log(place).count(f"got {number.name}") == 1
    assert "signals 1\n" in log(place)
    assert run_record(place)["state"] == "interrupted"
    assert events(place).count("stop requested") == 1


def test_two_signals_of_one_request_are_one_however_long_the_disk_takes_to_note_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hearing = object.__new__(supervisor._Supervisor)
    sent: list[int] = []
    now = 1000.0

    class SlowDisk:
        def event(self, _name: str, **_facts: object) -> None:
            nonlocal now
            now += 60
            hearing._hear(signal.SIGINT)  # while the first one is being written down

    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    monkeypatch.setattr(hearing, "_signal_run", sent.append, raising=False)
    hearing.claim = SlowDisk()  # type: ignore[assignment]
    hearing.asked, hearing.asked_at, hearing.is_noting = None, 0.0, False
    hearing._hear(signal.SIGINT)
    hearing._hear(signal.SIGINT)  # and the moment after that
    assert sent == [signal.SIGINT]
    now += SAME_REQUEST_S
    hearing._hear(signal.SIGINT)
    assert sent == [signal.SIGINT] * 2


def test_other_signals_are_forwarded_as_they_are(spawn: Spawner, results: Path) -> None:
    child = guarded(spawn, results, sys.executable, "-c", WAITING)
    child.signal(signal.SIGUSR1)
    assert child.wait() == 0
    assert "got SIGUSR1" in log(results)
    assert "signals 1\n" in log(results)
    assert run_record(results)["state"] == "completed"


SETTLING = """
import os, sys, time
from solorun.cli.main import main
from solorun.lock import DirectoryLock
settle = DirectoryLock.settle

def until_told(_seconds):
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)

DirectoryLock.settle = lambda lock: settle(lock, until_told)
sys.exit(main(sys.argv[2:]))
"""
"""The command, whose label settles as long as a test wants."""


def test_a_signal_before_the_command_is_executed_ends_it_there(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    settled = tmp_path / "settled"
    words = ("start", str(results), "--", "sh", "-c", "echo executed")
    child = spawn(sys.executable, str(spawn.program("settling.py", SETTLING)), str(settled), *words)
    wait_until(lambda: label_of(results))  # the command waits at its gate while the label settles
    child.signal(signal.SIGINT)
    settled.touch()
    assert child.wait() == 130
    assert "executed" not in log(results)
    assert run_record(results)["state"] == "interrupted"
    assert label_of(results) == 0


def test_sigint_inherited_as_ignored_reaches_the_command_all_the_same(spawn: Spawner, results: Path) -> None:
    program = spawn.program("sleeper.py", "import time; print('ready', flush=True); time.sleep(60)")
    starter = "import os, signal, sys; signal.signal(2, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    child = spawn.python(starter, sys.executable, "-m", "solorun", "start", results, "--", sys.executable, program)
    wait_until(lambda: "ready" in log(results))
    child.signal(signal.SIGINT)
    assert child.wait() == 130


def test_survivors_of_the_command_keep_the_directory_held_and_the_label_names_a_live_one(
    spawn: Spawner, results: Path
) -> None:
    survivor = "import os, time; os.closerange(0, 99); time.sleep(600)"
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {survivor!r}], start_new_session=True)"
    child = spawn.solorun("start", results, "--", sys.executable, "-c", starter)
    wait_until(lambda: "survivors" in events(results))
    (left,) = [one for one in process.carriers(run_record(results)["run_id"]) if one.pid != child.pid]
    wait_until(lambda: label_of(results) == left.pid)
    assert enter(results) == Busy()
    wait_until(lambda: f"processes of it still run (PID {left.pid})" in log(results))
    assert child.popen.poll() is None
    os.kill(left.pid, signal.SIGKILL)
    assert child.wait() == 0
    assert label_of(results) == 0
    assert run_record(results)["state"] == "completed"


def test_a_daemon_that_left_its_session_and_its_parent_is_waited_for_too(spawn: Spawner, results: Path) -> None:
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.5)
        print("daemon done", flush=True)
        os._exit(0)
    os._exit(0)
os._exit(5)
"""
    child = spawn.solorun("start", results, "--", sys.executable, "-c", code)
    assert child.wait() == 5
    assert log(results).index("daemon done") < log(results).index("Released lock")


def test_a_refused_start_leaves_every_file_of_the_live_run_as_it_is(spawn: Spawner, results: Path) -> None:
    first = guarded(spawn, results, sys.executable, "-c", WAITING)
    (results / "nohup.out").write_text("raw output\n")
    (results / "training.pid").write_text(f"{label_of(results)}\n")
    before = snapshot(results)
    began = time.monotonic()
    second = spawn.solorun("start", results, "--", "sh", "-c", "echo never")
    assert second.wait() == 3
    print(f"refused after {time.monotonic() - began:.3f} s")
    assert snapshot(results) == before
    assert f"is held by PID {label_of(results)}" in second.text()
    assert "next: watch it: solorun logs -f" in second.text()
    first.signal(signal.SIGINT)
    first.wait()


def test_a_start_is_refused_while_an_old_style_trainer_holds_the_label(spawn: Spawner, results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    before = snapshot(results)
    child = spawn.solorun("start", results, "--", "true")
    assert child.wait() == 3
    after = snapshot(results)
    assert after["training.lock"] == before["training.lock"]


def test_the_log_is_complete_and_the_terminal_copy_too(spawn: Spawner, results: Path) -> None:
    (results / LOG).write_text("an earlier run\n")
    code = "import sys\nfor n in range(20000): print('line', n)\nprint('to stderr', file=sys.stderr)\n"
    child = spawn.solorun("start", results, "--", sys.executable, "-c", code)
    assert child.wait() == 0
    lines = log(results).splitlines()
    assert lines[0] == "an earlier run"
    assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(20000)]
    assert "to stderr" in lines
    assert lines[-1] == "Released lock"
    assert child.text().count("line ") == 20000
    assert "an earlier run" not in child.text()
    assert "solorun: completed after" in child.text()


def test_a_reader_that_leaves_costs_the_copy_and_not_the_run(spawn: Spawner, results: Path) -> None:
    command = "echo one; sleep 0.3; echo two; sleep 0.3; echo three"
    line = f"{PYTHON} -m solorun start {quoted(results)} -- sh -c '{command}' | head -n 1"
    child = spawn("sh", "-c", line)
    child.wait()
    wait_until(lambda: "Released lock" in log(results))
    assert log(results) == "one\ntwo\nthree\nReleased lock\n"
    assert run_record(results)["state"] == "completed"


UNTIL_LET_GO = """
import os, sys, time
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("to its end", flush=True)
"""
"""Ends once a file is there, and hears no signal otherwise than a program does by itself."""


def test_under_nohup_a_hangup_stops_nothing(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    let_go = tmp_path / "let-go"
    command = (sys.executable, "-c", UNTIL_LET_GO, str(let_go))
    child = spawn("nohup", sys.executable, "-m", "solorun", "start", str(results), "--", *command)
    wait_until(lambda: "ready" in log(results))
    pid = label_of(results)
    assert process.argv(pid) == command
    child.signal(signal.SIGHUP)
    os.kill(pid, signal.SIGHUP)
    let_go.touch()
    assert child.wait() == 0
    assert "to its end" in log(results)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_with_closed_streams_it_works_all_the_same(spawn: Spawner, results: Path, closed: str) -> None:
    line = f"{PYTHON} -m solorun start {quoted(results)} -- sh -c 'echo out; echo err >&2; cat; exit 4' {closed}"
    child = spawn("sh", "-c", line)
    assert child.wait() == 4, child.text()
    assert "out\nerr\n" in log(results)
    assert run_record(results)["exit_code"] == 4


def test_the_command_gets_the_standard_input(spawn: Spawner, results: Path) -> None:
    child = spawn.solorun("start", results, "--", "cat", stdin=subprocess.PIPE)
    assert child.popen.stdin is not None
    child.popen.stdin.write(b"typed\n")
    child.popen.stdin.close()
    assert child.wait() == 0
    assert log(results) == "typed\nReleased lock\n"


def test_the_command_runs_in_the_callers_directory_with_its_environment(spawn: Spawner, results: Path) -> None:
    child = spawn.solorun(
        "start", results, "--", "sh", "-c", "pwd; echo $COLOUR $SOLORUN_RUN_ID", cwd="/", env={"COLOUR": "blue"}
    )
    assert child.wait() == 0
    assert log(results).startswith(f"/\nblue {run_record(results)['run_id']}\n")


def test_a_run_within_a_run_has_an_id_of_its_own(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    child = spawn.solorun(
        "start",
        results,
        "--",
        sys.executable,
        "-m",
        "solorun",
        "start",
        inner,
        "--",
        "sh",
        "-c",
        "echo $SOLORUN_RUN_ID",
    )
    assert child.wait() == 0
    assert log(inner).split()[0] == run_record(inner)["run_id"] != run_record(results)["run_id"]


def test_a_moved_directory_stops_the_command_and_everything_is_written_where_it_is(
    spawn: Spawner, results: Path
) -> None:
    child = guarded(spawn, results, sys.executable, "-c", WAITING)
    moved = results.with_name("moved")
    results.rename(moved)
    child.wait()
    assert "CONFLICT" in log(moved)
    assert "got SIGINT" in log(moved)
    assert label_of(moved) == 0
    assert not results.exists()


def test_a_label_deleted_by_hand_is_back(spawn: Spawner, results: Path) -> None:
    child = guarded(spawn, results, sys.executable, "-c", WAITING)
    pid = label_of(results)
    (results / "training.lock").unlink()
    wait_until(lambda: label_of(results) == pid)
    child.signal(signal.SIGINT)
    child.wait()
    assert label_of(results) == 0


def test_a_supervisor_killed_leaves_a_command_that_knows_nothing_of_it_holding_the_directory(
    spawn: Spawner, results: Path
) -> None:
    child = guarded(spawn, results, sys.executable, "-c", WAITING)
    pid = label_of(results)
    command = process.identify(pid)
    assert command is not None
    child.signal(signal.SIGKILL)
    child.wait()
    with pytest.raises(solorun.Held), solorun.hold(results):
        pass
    assert label_of(results) == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not process.is_alive(command))
    with solorun.hold(results, settle_s=0):
        pass


# A real terminal.


def test_ctrl_c_at_a_terminal_reaches_the_command_once_and_the_lock_is_released(
    terminal: Callable[..., Terminal], results: Path
) -> None:
    screen = terminal(sys.executable, "-m", "solorun", "start", results, "--", sys.executable, "-c", WAITING)
    screen.wait_for("ready")
    screen.type(b"\x03")
    assert screen.wait() == 0
    assert "got SIGINT" in log(results)
    assert "signals 1" in log(results)
    assert "Released lock" in screen.seen
    assert label_of(results) == 0


def test_ctrl_c_at_a_terminal_ends_a_command_without_handlers(terminal: Callable[..., Terminal], results: Path) -> None:
    screen = terminal(sys.executable, "-m", "solorun", "start", results, "--", "sh", "-c", "echo ready; sleep 60")
    screen.wait_for("ready")
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert run_record(results)["state"] == "interrupted"
    assert label_of(results) == 0


def test_at_a_terminal_the_command_may_read_the_keyboard(terminal: Callable[..., Terminal], results: Path) -> None:
    line = "echo ready; read word; echo got $word"
    screen = terminal(sys.executable, "-m", "solorun", "start", results, "--", "sh", "-c", line)
    screen.wait_for("ready")
    screen.type(b"hello\n")
    assert screen.wait() == 0
    assert "got hello" in log(results)


def interactive_shell(terminal: Callable[..., Terminal]) -> Terminal:
    """A shell with job control, as a person has it."""
    shell = terminal("bash", "--norc", "-i")
    shell.type(b"PS1='$ '; echo sh''ell\n")
    shell.wait_for("shell")
    return shell


def test_in_an_interactive_shell_a_run_ends_and_gives_the_terminal_back(
    terminal: Callable[..., Terminal], results: Path
) -> None:
    shell = interactive_shell(terminal)
    shell.type(f"{PYTHON} -m solorun start {quoted(results)} -- sh -c 'exit 4'; echo status=$?\n".encode())
    shell.wait_for("status=4")
    shell.type(b"exit 0\n")
    assert shell.wait() == 0


def test_ctrl_c_in_an_interactive_shell_ends_the_run_and_gives_the_terminal_back(
    terminal: Callable[..., Terminal], results: Path
) -> None:
    shell = interactive_shell(terminal)
    program = results.parent / "t.py"
    program.write_text(WAITING)
    shell.type(f"{PYTHON} -m solorun start {quoted(results)} -- {PYTHON} {quoted(program)}; echo status=$?\n".encode())
    shell.wait_for("ready")
    shell.type(b"\x03")
    shell.wait_for("exit status 0")
    shell.type(b"echo still he''re\n")
    shell.wait_for("still here")
    shell.type(b"exit 0\n")
    assert shell.wait() == 0
    assert "signals 1" in log(results)


def test_ctrl_z_suspends_both_and_both_go_on(terminal: Callable[..., Terminal], results: Path) -> None:
    shell = interactive_shell(terminal)
    program, let_go = results.parent / "t.py", results.parent / "let-go"
    program.write_text(UNTIL_LET_GO)
    command = f"{PYTHON} {quoted(program)} {quoted(let_go)}"
    shell.type(f"{PYTHON} -m solorun start {quoted(results)} -- {command}\n".encode())
    shell.wait_for("ready")
    shell.type(b"\x1a")
    shell.wait_for("Stopped")
    pid = label_of(results)
    wait_until(lambda: getattr(process.probe(pid), "state", "") == "T")
    let_go.touch()  # which a suspended program does not see
    shell.type(b"fg\n")
    shell.wait_for("to its end")
    shell.wait_for("completed after")
    shell.type(b"exit 0\n")
    shell.wait()


def test_a_closed_terminal_stops_the_run_gracefully(terminal: Callable[..., Terminal], results: Path) -> None:
    screen = terminal(sys.executable, "-m", "solorun", "start", results, "--", sys.executable, "-c", WAITING)
    screen.wait_for("ready")
    os.close(screen.fd)
    screen.fd = os.open(os.devnull, os.O_RDWR)
    wait_until(lambda: "Released lock" in log(results))
    assert "got SIGHUP" in log(results)
    screen.wait()


def test_what_a_start_in_a_session_says_between_two_looks_before_it_ends_is_heard() -> None:
    hearing, telling = os.pipe()
    listener = Listener(hearing)

    def says_why_and_ends() -> bool:
        teller(telling)(failure(BadUsage("cannot execute it", "")))
        return False

    try:
        with pytest.raises(BadUsage, match="cannot execute it"):
            await_start(listener, says_why_and_ends)
        with pytest.raises(DirectoryProblem, match="before it could say how"):
            await_start(listener, lambda: False)
    finally:
        listener.close()
        os.close(telling)
