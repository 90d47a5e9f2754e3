"""Another host over a real sshd: every verb, a lost connection, a wrong key, a stopped server, another version."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.guard.stage import (
    HOLDING,
    Child,
    Spawner,
    Terminal,
    events,
    label_of,
    names,
    run_record,
    snapshot,
    wait_until,
)

from .sshd import Server, known_host, settings_file, short_place, why_no_server

pytestmark = pytest.mark.skipif(bool(why_no_server()), reason=why_no_server())
SOLORUN = [sys.executable, "-P", "-m", "solorun"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with short_place() as sockets:
        made = Server(tmp_path_factory.mktemp("sshd"), sockets)
        yield made
        made.stop()


class Near:
    """This side: solorun in an empty directory, with the far side as host `box`."""

    def __init__(self, server: Server, spawn: Spawner, here: Path, project: Path) -> None:
        self.server, self.spawn, self.here, self.project = server, spawn, here, project
        self.env = {**server.environment(), "SOLORUN_STATE": str(here / "state")}

    def says(self, *words: str | Path, code: int | None = 0, env: dict[str, str] | None = None, stdin: str = "") -> str:
        """What a command printed, once it has ended with this exit status."""
        full = self.spawn.environment(**{**self.env, **(env or {})})
        told = subprocess.run(
            [*SOLORUN, *map(str, words)],
            cwd=self.here,
            env=full,
            capture_output=True,
            input=stdin,
            text=True,
            timeout=600,
        )
        assert code is None or told.returncode == code, (told.returncode, told.stdout, told.stderr)
        assert "Traceback" not in told.stdout + told.stderr
        return told.stdout + told.stderr

    def starts(self, *words: str | Path, **options: Any) -> Child:
        return self.spawn.solorun(*words, env=self.env, cwd=self.here, **options)

    def trains(self, name: str = "results/a") -> Path:
        """A trainer over there that holds a directory."""
        directory = self.project / name
        directory.mkdir(parents=True)
        self.spawn.python(HOLDING, directory, env={"SOLORUN_STATE": str(self.here.parent / "far state")}).wait_for(
            "holding"
        )
        return directory


@pytest.fixture
def near(server: Server, tmp_path: Path) -> Iterator[Near]:
    here, project = tmp_path / "here", tmp_path / 'it\'s a "project"'
    here.mkdir()
    project.mkdir()
    spawn = Spawner(tmp_path)
    # The far side's processes carry the mark too, so that whatever is left of them is ended.
    own = [f"SOLORUN_TEST_MARK={spawn.mark}", f"SOLORUN_STATE={tmp_path}/far state"]
    called = ["env", *own, f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", *SOLORUN]
    settings_file(project, "box", command=called)
    (project / "solorun.toml").rename(here / "solorun.toml")
    try:
        yield Near(server, spawn, here, project)
    finally:
        spawn.end()
        if server.daemon is None:
            server.start()


def test_p20_status_check_logs_and_stop_of_a_run_on_another_host(near: Near) -> None:
    directory = near.trains()
    pid = label_of(directory)
    shown = near.says("status", "--host", "box")
    head, row, *_ = shown.splitlines()
    assert head.split() == ["HOST", "DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG"]
    assert row.split()[:4] == ["box", "results/a", "running", str(pid)]
    told = json.loads(near.says("status", "--host", "box", "--json"))
    assert (told["schema"], told["hosts"][0]["reachable"], told["runs"][0]["host"]) == (1, True, "box")
    assert told["runs"][0]["pid"] == pid
    said = near.says("check", "--host", "box", "results/a", code=4)
    assert "NOT SAFE  results/a" in said
    assert "this was host box: what is advised above needs --host box" in said
    (near.project / "results/torn").mkdir()
    (near.project / "results/torn/checkpoint_1.safetensors").touch()
    for words, code in ((("recover", "results/torn"), 2), (("attach", "results/torn"), 1)):
        said = near.says(*words, "--host", "box", code=code)
        assert "next:" in said
        assert "what is advised above needs --host box" in said
    assert "held by PID" in near.says("start", "--host", "box", "results/a", "--", "true", code=3)
    assert "results/a: stopped" in near.says("--host", "box", "stop", "results/a")
    assert run_record(directory)["state"] == "interrupted"
    assert near.says("stop", "--host=box", "results/a") == "results/a: no run to stop\n"
    assert "safe      results/a" in near.says(
        "check", "--host", "box", "results/a", code=None
    )  # its other runs count too
    assert "interrupted" in near.says("status", "--host", "box")
    assert names(near.here) == {"solorun.toml", "state"}


def test_p19_start_hands_words_input_and_the_exit_status_through(near: Near) -> None:
    code = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(int(sys.argv[1]))"
    nasty = ["$(touch pwned)", "it's", "new\nline", "--host", "a\\b!", ""]
    for status in ("37", "255", "127", "0"):
        command = ["start", "--host", "box", "results/a", "--", sys.executable, "-c", code, status, *nasty]
        said = near.says(*command, code=int(status), stdin="typed")
        assert f"{[status, *nasty]} typed" in said
    assert not list(near.project.rglob("pwned"))
    assert near.says("logs", "--host", "box", "-n", "1", "results/a") == "Released lock\n"


def test_a_loop_over_hosts_keeps_its_list(near: Near) -> None:
    loop = f"while read name; do {shlex.join(SOLORUN)} stop --host $name results/a || :; echo; done"
    env = near.spawn.environment(**near.env)
    (near.project / "results/a").mkdir(parents=True)
    told = subprocess.run(
        ["sh", "-c", loop], cwd=near.here, env=env, input="box\nbox\nbox\n", capture_output=True, text=True, timeout=600
    )
    assert told.stdout.count("no run to stop") == 3, told.stderr


def connection_of(pid: int) -> int:
    """The ssh that a `solorun --host` waits for; there must be one, since 0 would be our own group to a kill."""
    from solorun.process import system

    return next(one for one in system.pids() if system.parent(one) == pid)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cut_connection_stops_a_foreground_run_gracefully(near: Near, terminal: bool) -> None:
    directory = near.project / "results/a"
    command = ["start", "--host", "box", "results/a", "--", sys.executable, "-c", HOLDING_FLAT, "results/a"]
    env = near.spawn.environment(**near.env)
    if terminal:
        screen = Terminal(["env", "-C", str(near.here), *SOLORUN, *command], env)
        screen.wait_for("holding")
        os.kill(connection_of(screen.pid), signal.SIGKILL)
        screen.wait()
        screen.close()
    else:
        child = near.starts(*command)
        child.wait_for("holding")
        os.kill(connection_of(child.pid), signal.SIGKILL)
        child.wait()
    wait_until(lambda: not far_processes(near))
    assert run_record(directory)["state"] == "interrupted"
    assert not {"training.lock", "training.owner.json"} & names(directory)
    assert "leaving SIGHUP" in (directory / "training.log").read_text()
    assert near.says("start", "--host", "box", "results/a", "--", "true", code=0)


def test_a_connection_that_the_other_end_cuts_is_told_of(near: Near) -> None:
    assert near.server.daemon is not None
    near.says("status", "--host", "box")
    child = near.starts("start", "--host", "box", "results/a", "--", sys.executable, "-c", HOLDING_FLAT, "results/a")
    child.wait_for("holding")
    for session in psutil.Process(near.server.daemon.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # of an earlier command, and just gone
            session.kill()
    assert child.wait() in (6, 255)
    assert "the connection to host box was lost" in child.text()
    wait_until(lambda: not far_processes(near))


HOLDING_FLAT = """
import sys, time, solorun
with solorun.hold(sys.argv[1]) as run:
    print("holding", flush=True)
    while not run.should_stop:
        time.sleep(0.01)
    print("leaving", run.stop_reason, flush=True)
"""


def test_p7_a_background_run_outlives_the_connection_and_is_attached_again(near: Near) -> None:
    directory = near.project / "results/a"
    command = ["--", sys.executable, "-c", HOLDING_FLAT, "results/a"]
    said = near.says("start", "--host", "box", "--background", "results/a", *command)
    assert "it goes on when you log out" in said
    assert "what is advised above needs --host box" in said
    near.server.forget()
    watcher = near.starts("attach", "--host", "box", "results/a")
    watcher.wait_for("holding")
    os.kill(connection_of(watcher.pid), signal.SIGKILL)
    watcher.wait()
    pid = label_of(directory)
    wait_until(lambda: len(far_processes(near)) == 2, what=lambda: far_processes(near))  # supervisor and trainer
    assert pid in far_processes(near)
    assert "running" in near.says("status", "--host", "box")
    assert "stopped" in near.says("stop", "--host", "box", "results/a")
    assert "leaving SIGTERM" in (directory / "training.log").read_text()


def test_ctrl_c_in_a_terminal_reaches_the_far_run_and_its_end_is_seen(near: Near) -> None:
    command = ["start", "--host", "box", "results/a", "--", sys.executable, "-c", HOLDING_FLAT, "results/a"]
    screen = Terminal(["env", "-C", str(near.here), *SOLORUN, *command], near.spawn.environment(**near.env))
    try:
        screen.wait_for("holding")
        screen.type(b"\x03")
        assert screen.wait() == 130
        assert "leaving SIGINT" in screen.read()
        assert "Released lock" in screen.read()
    finally:
        screen.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_following_a_log_over_there_leaves_nothing_behind(near: Near, how: signal.Signals) -> None:
    directory = near.project / "results/a"
    directory.mkdir(parents=True)
    (directory / "training.log").write_text("first line\n")
    child = near.starts("logs", "-f", "--host", "box", "results/a")
    child.wait_for("first line")
    with (directory / "training.log").open("a") as log:
        log.write("second line\n")
    child.wait_for("second line")
    assert far_processes(near)
    if how == signal.SIGKILL:  # of ssh itself
        os.kill(connection_of(child.pid), how)
        child.wait()
    else:
        child.signal(how)
        assert child.wait() == 128 + how
    wait_until(lambda: not far_processes(near))


def far_processes(near: Near) -> list[int]:
    """What still runs over there: a followed log, a supervisor, its command."""
    from solorun.process import argv

    own = {child.pid for child in near.spawn.children}
    found = [one.pid for one in near.spawn.descendants() if one.pid not in own]
    return [pid for pid in found if argv(pid)[:1] == (sys.executable,) and "--host" not in argv(pid)]


def test_a_stopped_server_is_unreachable_and_its_runs_are_last_seen(near: Near) -> None:
    directory = near.trains()
    began = time.time()
    assert "running" in near.says("status", "--host", "box")
    before = {name: kept for name, kept in snapshot(directory).items() if name == "training.owner.json"}
    near.server.stop()
    for words in (["stop", "results/a"], ["check"], ["logs", "results/a"], ["start", "results/a", "--", "true"]):
        said = near.says(*words[:1], "--host", "box", *words[1:], code=6)
        assert "host box cannot be reached: ssh: connect to host 127.0.0.1" in said
        assert "refused" in said
    said = near.says("status", "--host", "box", code=6)
    assert "last seen running" in said
    assert "unreachable is not dead" in said
    assert "solorun stop" not in said
    assert "recover" not in said
    said = near.says("status", "--all-hosts")
    assert "last seen running" in said
    near.says("status", "--all-hosts", "--exit-code", code=6)
    told = json.loads(near.says("status", "--all-hosts", "--json"))
    (host,), (run,) = told["hosts"], told["runs"]
    assert (host["reachable"], run["reachable"], run["state"]) == (False, False, "running")
    assert 0 < host["age_s"] <= time.time() - began
    assert "refused" in host["problem"]
    assert "unreachable" in near.says("hosts")
    assert {name: kept for name, kept in snapshot(directory).items() if name == "training.owner.json"} == before
    assert label_of(directory)
    near.server.start()
    assert "last seen" not in near.says("status", "--host", "box")


def test_a_host_that_was_never_seen_is_only_unreachable(near: Near) -> None:
    near.server.stop()
    assert "cannot be reached" in near.says("status", "--host", "box", code=6)
    assert "never seen from here" in near.says("status", "--all-hosts")


def test_a_key_that_is_refused_and_a_host_key_that_changed_are_told(near: Near, tmp_path: Path) -> None:
    place = near.server.place
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    near.server.forget()
    config = (place / "ssh_config").read_text()
    stranger = tmp_path / "stranger"
    stranger.write_text(
        config.replace(f"{place}/user_key", f"{tmp_path}/other").replace("Host *", "Host *\n BatchMode yes")
    )
    env = {"SOLORUN_SSH_OPTIONS": f"-F {shlex.quote(str(stranger))}"}
    for words in (["check", "--host", "box"], ["status", "--host", "box"]):
        said = near.says(*words, code=6, env=env)
        assert "Permission denied" in said
        assert "next: log in by hand to see why: ssh box" in said
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    (tmp_path / "known").write_text(known_host(place, "127.0.0.1", near.server.port).split()[0] + f" {kind} {key}\n")
    changed = tmp_path / "changed"
    changed.write_text(config.replace(f"{place}/known_hosts", str(tmp_path / "known")))
    said = near.says(
        "stop", "--host", "box", "x", code=6, env={"SOLORUN_SSH_OPTIONS": f"-F {shlex.quote(str(changed))}"}
    )
    assert "host box cannot be reached: Host key verification failed." in said
    assert "its key is another than before" in said


def far_command(near: Near, code: str) -> None:
    """Another solorun over there."""
    program = near.spawn.program("other solorun", f"#!/bin/sh\n{code}")
    program.chmod(0o755)
    settings_file(near.project, "box", command=[str(program)])
    (near.project / "solorun.toml").replace(near.here / "solorun.toml")


def test_another_version_over_there_is_told_apart_from_a_mistake(near: Near) -> None:
    far_command(
        near, 'case $1 in --version) echo solorun 0.0.9;; status) echo "no such verb" >&2; exit 2;; *) exit 2; esac'
    )
    said = near.says("attach", "--host", "box", "results/a", code=2)
    assert "host box has solorun 0.0.9, here 0.1.0: it may not know this verb or flag" in said
    said = near.says("status", "--host", "box", code=6)
    assert "host box has solorun 0.0.9, here 0.1.0: its status failed: no such verb" in said
    far_command(near, """case $1 in --version) echo solorun 9.9.9;; *) echo '{"schema": 9, "runs": []}';; esac""")
    assert "its status has schema 9, this one reads 1" in near.says("status", "--host", "box", code=6)
    far_command(near, "case $1 in --version) echo solorun 0.1.0;; *) exit 2; esac")
    assert near.says("stop", "--host", "box", "--mistake", code=2) == ""


def test_a_missing_solorun_and_a_missing_directory_are_told(near: Near) -> None:
    settings_file(near.project, "box", command=["/no/such/solorun"])
    (near.project / "solorun.toml").replace(near.here / "solorun.toml")
    for words in (["stop", "x"], ["status"]):
        said = near.says(*words, "--host", "box", code=6)
        assert "host box answers, but has no /no/such/solorun" in said
        assert "[hosts.box] command" in said
    far_command(near, "echo solorun 0.1.0")
    text = (near.here / "solorun.toml").read_text()
    (near.here / "solorun.toml").write_text(text.replace("project", "gone"))
    for words in (["stop", "x"], ["status"]):
        assert "host box has no directory" in near.says(*words, "--host", "box", code=6)


def test_hosts_lists_version_and_runs_and_a_destination_needs_no_configuration(near: Near) -> None:
    near.trains()
    head, row = near.says("hosts").splitlines()
    assert head.split() == ["HOST", "SSH", "STATE", "VERSION", "RUNS", "SEEN"]
    assert row.split() == ["box", "box", "up", "0.1.0", "1", "running", "now"]
    told = json.loads(near.says("hosts", "--json"))
    assert told["hosts"][0] | {"last_seen": 0, "age_s": 0} == {
        "name": "box", "ssh": "box", "reachable": True, "version": "0.1.0", "last_seen": 0, "age_s": 0, "problem": None,
        "runs": {"running": 1},
    }  # fmt: skip
    assert "leave --host out" in near.says("hosts", "--host", "box", code=2)
    said = near.says("status", "--hos", "box", code=2)
    assert "--host must be written out" in said
    (near.here / "solorun.toml").unlink()
    assert "no hosts in solorun.toml" in near.says("hosts")
    assert "no hosts in solorun.toml" in near.says("status", "--all-hosts", code=2)
    said = near.says("--host", "box", "--version", code=None)
    assert "solorun 0." in said


def test_a_run_that_this_machine_and_a_host_entry_both_show_is_shown_once(near: Near) -> None:
    near.trains()
    text = (near.here / "solorun.toml").read_text()
    (near.here / "solorun.toml").write_text(f"roots = [{json.dumps(str(near.project))}]\n{text}")
    told = json.loads(near.says("status", "--all-hosts", "--json"))
    assert [run["host"] for run in told["runs"]] == ["box"]
    assert events(near.project / "results/a")[:1] == ["started"]
