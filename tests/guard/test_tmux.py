"""A run in a tmux session, with a real tmux on a private socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solorun import process
from solorun.launch import TmuxSession
from solorun.tmux import enter_command, session_name

from .stage import Child, Spawner, Terminal, events, label_of, quoted, run_record, wait_until

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

COUNTING = """
import os, sys, time, solorun
with solorun.hold(sys.argv[1], announce=lambda line: print(line, flush=True)) as run:
    print("greeting:", os.environ.get("GREETING"), flush=True)
    step = 0
    while not run.should_stop:
        step += 1
        run.progress(step, 100000)
        if step % 20 == 0:
            print("step", step, flush=True)
        time.sleep(0.01)
    print("leaving after", run.stop_reason, flush=True)
"""


ATTENTIVE = """
import sys
from solorun import start
from solorun.cli.main import main
start.FIRST_STEPS_S = 60.0  # a busy machine may need longer for a first error than a person is kept waiting
sys.exit(main(sys.argv[1:]))
"""
"""The command, listening for the first moments of a run in a session until they are over."""


class Server:
    """A tmux server of the test's own."""

    def __init__(self, spawn: Spawner, socket: Path) -> None:
        self.spawn = spawn
        self.socket = socket
        self.env = {"SOLORUN_TMUX_SOCKET": str(socket), "GREETING": "good morning"}

    def __call__(self, *words: str) -> str:
        return subprocess.run(["tmux", "-S", self.socket, *words], capture_output=True, text=True, check=False).stdout

    def start(self, results: Path, *flags: str) -> Child:
        program = self.spawn.program("trainer.py", COUNTING)
        command = (sys.executable, program, results)
        return self.spawn.solorun("start", results, "--tmux", *flags, "--", *command, env=self.env)

    def screen(self, results: Path) -> str:
        """What the pane shows, and what it has shown before: lines scroll away while a busy machine looks."""
        return self("capture-pane", "-p", "-S", "-", "-t", f"={session_name(results)}:")


@pytest.fixture
def tmux(spawn: Spawner) -> Iterator[Server]:
    # A socket's path is short: 104 bytes on macOS.
    place = Path(os.environ.get("TMPDIR", "/tmp")) / f"solorun-tmux-{os.getpid()}"
    server = Server(spawn, place)
    yield server
    server("kill-server")
    place.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["mine", "with space", "a.b:c", "-dash", "ünïcode", "..."])
def test_a_session_has_a_readable_name_that_tmux_can_take(name: str) -> None:
    found = session_name(Path("/results") / name)
    assert found.startswith("solorun-")
    assert not set(found) & set(".: ")
    assert found != session_name(Path("/other") / name)


def test_from_within_the_same_server_the_session_is_switched_to() -> None:
    session = TmuxSession("solorun-a", "/tmp/socket")
    assert "attach-session" in enter_command(session, {})
    assert "attach-session" in enter_command(session, {"TMUX": "/tmp/other,1,0"})
    assert "switch-client" in enter_command(session, {"TMUX": "/tmp/socket,1,0"})


def test_without_tmux_the_start_says_what_to_do(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    child = spawn.solorun("start", results, "--tmux", "--", "true", env={"PATH": str(tmp_path)})
    assert child.wait() == 2
    assert "tmux is not installed" in child.text()
    assert "--background" in child.text()


@needs_tmux
def test_a_run_lives_in_a_session_of_its_directory_with_the_callers_environment(tmux: Server, results: Path) -> None:
    tmux("new-session", "-d", "-s", "before", "sleep", "600")  # a running server has another environment than we
    child = tmux.start(results)
    assert child.wait() == 0, child.text()
    name = session_name(results)
    assert f"live:  tmux -S {quoted(tmux.socket)} attach -t {name}" in child.text()
    assert name in tmux("list-sessions")
    wait_until(lambda: "greeting: good morning" in tmux.screen(results))
    assert label_of(results) == json.loads((results / "training.owner.json").read_text())["process"]["pid"]
    assert "in tmux" in events(results)
    assert tmux.spawn.solorun("stop", results).wait() == 0
    wait_until(lambda: name not in tmux("list-sessions"))


@needs_tmux
def test_ctrl_c_in_the_pane_is_a_graceful_stop(tmux: Server, results: Path) -> None:
    assert tmux.start(results).wait() == 0
    wait_until(lambda: "step" in tmux.screen(results))
    tmux("send-keys", "-t", f"={session_name(results)}:", "C-c")
    wait_until(lambda: label_of(results) == 0)
    assert "leaving after SIGINT" in (results / "training.log").read_text()
    wait_until(lambda: run_record(results)["state"] == "interrupted")


@needs_tmux
def test_a_refused_start_is_told_here_and_leaves_no_session(tmux: Server, results: Path) -> None:
    assert tmux.start(results).wait() == 0
    second = tmux.start(results)
    assert second.wait() == 3
    assert f"is held by PID {label_of(results)}" in second.text()
    wait_until(lambda: len(tmux("list-sessions").splitlines()) == 1)
    wrong = tmux.spawn.solorun("start", f"{results}-other", "--tmux", "--", "/no/such/program", env=tmux.env)
    assert wrong.wait() == 2
    assert "cannot execute" in wrong.text()
    attentive = tmux.spawn.program("solorun", ATTENTIVE)
    command = ("start", f"{results}-third", "--tmux", "--", "sh", "-c", "echo why; exit 9")
    at_once = tmux.spawn(sys.executable, str(attentive), *command, env=tmux.env)
    assert at_once.wait() == 9
    assert "| why" in at_once.text()


@needs_tmux
def test_a_crash_at_once_is_told_however_long_its_last_lines_are(tmux: Server, results: Path) -> None:
    attentive = tmux.spawn.program("solorun", ATTENTIVE)
    endless = tmux.spawn.program("endless.py", "import sys; print(200_000 * 'x'); sys.exit(9)")
    command = ("start", results, "--tmux", "--", sys.executable, endless)
    assert tmux.spawn(sys.executable, str(attentive), *map(str, command), env=tmux.env).wait() == 9


@needs_tmux
@pytest.mark.parametrize("how", ["hangup", "kill"])
def test_when_the_server_dies_the_run_ends_gracefully_and_no_lock_is_left(
    tmux: Server, results: Path, how: str
) -> None:
    assert tmux.start(results).wait() == 0
    wait_until(lambda: "step" in tmux.screen(results))
    if how == "hangup":
        tmux("kill-server")
    else:
        os.kill(int(tmux("display-message", "-p", "#{pid}")), signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)
    assert "leaving after SIGHUP" in (results / "training.log").read_text()
    wait_until(lambda: not process.carriers(run_record(results)["run_id"]))
    wait_until(lambda: not tmux.spawn.descendants())  # its supervisor lets go of the lock after the label
    assert tmux.spawn.solorun("start", results, "--", "true").wait() == 0


@needs_tmux
def test_the_lock_is_not_leaked_into_the_server(tmux: Server, results: Path) -> None:
    assert tmux.start(results).wait() == 0
    tmux("new-session", "-d", "-s", "keeps-the-server", "sleep", "600")
    os.kill(label_of(results), signal.SIGKILL)
    wait_until(lambda: tmux("list-sessions", "-F", "#{session_name}").split() == ["keeps-the-server"])
    assert label_of(results) == 0
    again = tmux.start(results)
    assert again.wait() == 0, again.text()


@needs_tmux
def test_a_wait_happens_in_the_pane(tmux: Server, results: Path) -> None:
    assert tmux.start(results).wait() == 0
    other = tmux.spawn.solorun("start", results, "--tmux", "--wait", "--", "sleep", "600", env=tmux.env)
    assert other.wait() == 0
    assert "waiting for PID" in other.text()
    assert f"{session_name(results)}-2" in tmux("list-sessions")
    assert tmux.spawn.solorun("stop", results).wait() == 0
    # The label names the run before until the waiting one has taken over, and a process that is gone has no words.
    wait_until(lambda: label_of(results) and process.argv(label_of(results))[:1] == ("sleep",))


@needs_tmux
def test_attach_enters_the_session_from_another_login(
    tmux: Server, results: Path, terminal: Callable[..., Terminal]
) -> None:
    assert tmux.start(results).wait() == 0
    shown = terminal("env", "TERM=xterm", sys.executable, "-m", "solorun", "attach", results, "--tmux")
    wait_until(lambda: tmux("list-clients") != "")
    shown.wait_for("step")
    shown.type(b"\x02d")  # Ctrl-b d
    assert shown.wait() == 0
    assert label_of(results)
