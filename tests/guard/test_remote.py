"""Other hosts, without any: the line that is sent, the shells that read it, the words for errors, the memory."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from solorun import farscript, forwarded, hosts, remote
from solorun.cli import hosts as cli_hosts
from solorun.cli import hosttable, onhost
from solorun.cli.main import main
from solorun.errors import BadUsage, SolorunError, Unreachable
from solorun.remote import Answer, Client
from solorun.settings import HostEntry, Settings

from .stage import MARK, PYTHON, Spawner, wait_until

NASTY = [
    "plain", "", " ", "two words", "tab\there", "new\nline", "\n", "trailing\n", "'", '"', "it's", "\\", "\\\\",
    "a\\'b", "\\n", "$HOME", "$(touch pwned)", "`touch pwned`", "${IFS}", "!", "!!", "!$", "a!b'c\"d", "*", "?",
    "[a-z]", "{a,b}", "~", "~root", "-", "--", "-oProxyCommand=touch pwned", ";touch pwned", "a;b", "a&b", "a|b",
    "<x", ">pwned", "#no", "%d", "%%s", "\\0101", "(", ")", "^", "=ls", "a=b", "\x01\x7f", "Grüße", "日本語",
    "x" * 5000, "\udcff\udcfe",
]  # fmt: skip
"""Words that some shell takes for more than words."""

SHELLS = [name for name in ("sh", "dash", "bash", "zsh", "fish", "csh", "tcsh", "ksh", "busybox") if shutil.which(name)]

TELL = """\
[ "$1" = --version ] && echo solorun 1.2.3 && exit
pwd -P
for word; do printf '%s\\0' "$word"; done
"""
"""A solorun that tells where it was called, and the words that reached it."""


def by_login_shell(shell: str, line: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    """What sshd does with a line: the login shell runs it, in the home directory."""
    words = ["busybox", "sh"] if shell == "busybox" else [shell]
    env = {**os.environ, "HOME": str(home), "CDPATH": "/usr"}
    return subprocess.run([*words, "-c", line], cwd=home, env=env, capture_output=True, check=False)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_hands_nasty_words_on_as_they_are(shell: str, tmp_path: Path) -> None:
    (tmp_path / "tell").write_text(TELL)
    host = HostEntry("box", "box", "", ("sh", str(tmp_path / "tell")))
    for words in [NASTY[:-1], NASTY[-1:], ["status", "--", *NASTY[:20]]]:
        line = farscript.login_line(farscript.verb_script(host, words, terminal=False))
        ran = by_login_shell(shell, line, tmp_path)
        assert ran.returncode == 0, ran.stderr
        where, _, rest = ran.stdout.partition(b"\n")
        assert where == os.fsencode(tmp_path.resolve())
        assert [os.fsdecode(word) for word in rest.split(b"\0")[:-1]] == words
    assert not (tmp_path / "pwned").exists()


DIRECTORIES = [
    "kssm", "two words", "-dash", "it's $(touch pwned)", "new\nline", "bang!", "back\\slash", '"quoted"', "~tilde",
    "a/~/b", "Grüße",
]  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_enters_a_nasty_directory_below_home(shell: str, tmp_path: Path) -> None:
    (tmp_path / "tell").write_text(TELL)
    for name in DIRECTORIES:
        (tmp_path / name).mkdir(parents=True)
        for spelled in [str(tmp_path / name), f"~/{name}", *([] if name.startswith("~") else [name])]:
            host = HostEntry("box", "box", spelled, ("sh", str(tmp_path / "tell")))
            line = farscript.login_line(farscript.question_script(host, ["status"]))
            ran = by_login_shell(shell, line, tmp_path)
            assert ran.returncode == 0, (spelled, ran.stderr)
            where = os.fsencode((tmp_path / name).resolve())
            assert ran.stdout == b"solorun 1.2.3\n" + where + b"\nstatus\0"
    assert not any(tmp_path.rglob("pwned"))


def test_the_home_of_another_user_is_found_by_the_far_shell() -> None:
    host = HostEntry("box", "box", "~root", ("pwd", ";"))
    script = farscript.verb_script(host, [], terminal=True)
    assert script.startswith("cd ~root 2>/dev/null || exit 127; exec pwd ")
    host = HostEntry("box", "box", "~", ("~/.venv/bin/solorun", "a b"))
    script = farscript.verb_script(host, ["status"], terminal=True)
    assert script == "cd ~ 2>/dev/null || exit 127; exec ~/.venv/bin/solorun 'a b' status"
    assert "cd ./-x " in farscript.verb_script(HostEntry("box", "box", "-x", ("solorun",)), [], terminal=True)


def test_a_directory_that_is_missing_is_told_apart_from_the_verbs_own_statuses(tmp_path: Path) -> None:
    host = HostEntry("box", "box", "gone", ("sh", "-c", "exit 3"))
    assert by_login_shell("sh", farscript.login_line(farscript.question_script(host, ["x"])), tmp_path).returncode == 97
    assert (
        by_login_shell(
            "sh", farscript.login_line(farscript.verb_script(host, ["x"], terminal=False)), tmp_path
        ).returncode
        == 127
    )
    host = HostEntry("box", "box", "", ("no-such-program",))
    assert by_login_shell("sh", farscript.login_line(farscript.question_script(host, ["x"])), tmp_path).returncode == 98


def test_a_persons_options_come_before_ours_and_the_destination_is_no_option() -> None:
    client = Client(("/opt/ssh", "-F", "my config"), Path("/run/x"), 2.4)
    found = remote.options(client, terminal=True, asks=True, log="/tmp/log")
    assert found[:3] == ["/opt/ssh", "-F", "my config"]
    said = set(found)
    assert said >= {"ControlMaster=auto", "ControlPath=/run/x/%C", "ConnectTimeout=2", "ServerAliveInterval=5",
                    "ServerAliveCountMax=3", "-t", "RemoteCommand=none"}  # fmt: skip
    assert "BatchMode=yes" not in said
    quiet = remote.options(Client(("ssh",), None, 0.1), terminal=False, asks=False, log="/tmp/log")
    assert {"BatchMode=yes", "ConnectTimeout=1", "-T"} <= set(quiet)
    assert not any(word.startswith("Control") for word in quiet)


def test_the_environment_names_the_program_and_its_options(tmp_path: Path) -> None:
    env = {"SOLORUN_SSH": "/opt/my ssh", "SOLORUN_SSH_OPTIONS": "-F 'a b' -v", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert remote.client(env, Settings()).program == ("/opt/my ssh", "-F", "a b", "-v")
    assert remote.client({}, Settings()).program == ("ssh",)
    with pytest.raises(BadUsage, match="SOLORUN_SSH_OPTIONS"):
        remote.client({"SOLORUN_SSH_OPTIONS": "'"}, Settings())


@pytest.fixture
def runtime() -> object:
    from tests.processes.sshd import short_place

    with short_place() as place:
        yield place


def test_sockets_lie_in_a_short_private_directory(runtime: Path) -> None:
    place = remote.socket_directory({"XDG_RUNTIME_DIR": str(runtime)}, os.getuid())
    assert place == runtime / "solorun"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert len(str(place / ("0" * 40))) + 17 < 104
    long = remote.socket_directory({"XDG_RUNTIME_DIR": str(runtime / ("x" * 60))}, os.getuid())
    assert long == Path(f"/tmp/solorun-{os.getuid()}")


def test_a_directory_that_others_may_write_is_not_used(runtime: Path) -> None:
    (runtime / "solorun").mkdir()
    (runtime / "solorun").chmod(0o777)
    assert remote.socket_directory({"XDG_RUNTIME_DIR": str(runtime)}, os.getuid()) != runtime / "solorun"
    (runtime / "solorun").rmdir()
    (runtime / "solorun").symlink_to("/tmp")
    assert remote.socket_directory({"XDG_RUNTIME_DIR": str(runtime)}, os.getuid()) != runtime / "solorun"


def test_hosts_of_the_settings_come_first_and_any_other_name_is_a_destination() -> None:
    entry = HostEntry("studio", "ada@studio.local", "~/kssm", ("solorun",))
    settings = Settings(hosts=(entry,))
    assert remote.find_host("studio", settings) is entry
    assert remote.find_host("ada@box", settings) == HostEntry("ada@box", "ada@box", "", ("solorun",))
    for name in ("", "-oProxyCommand=x", "a b", "a\nb"):
        with pytest.raises(BadUsage, match="is no host"):
            remote.find_host(name, settings)


@pytest.mark.parametrize(
    ("words", "host", "rest"),
    [
        (["status"], None, ["status"]),
        (["--host", "a", "status"], "a", ["status"]),
        (["stop", "--host=a", "x"], "a", ["stop", "x"]),
        (["stop", "x", "--host", "a"], "a", ["stop", "x"]),
    ],
)
def test_the_host_is_taken_out_wherever_it_stands(words: list[str], host: str | None, rest: list[str]) -> None:
    assert onhost.take(words) == (host, rest)


@pytest.mark.parametrize("words", [["x", "--host"], ["x", "--host="], ["--host", "a", "x", "--host", "b"]])
def test_a_host_without_a_name_or_two_of_them_are_a_usage_error(words: list[str]) -> None:
    with pytest.raises(BadUsage):
        onhost.take(words)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("attach x", True), ("recover x", True), ("start x", True), ("start x --background", False),
        ("start --tmux x", False), ("start --back x", False), ("logs x", False), ("logs -f x", True),
        ("logs -n 3 x", False),
        ("logs x --follow", True), ("stop x", False), ("check", False), ("history", False), ("later-verb", False),
    ],
)  # fmt: skip
def test_only_a_verb_that_a_person_talks_with_gets_a_terminal(words: str, wanted: bool) -> None:
    assert onhost.wants_terminal(words.split()) is wanted


def test_what_ssh_says_becomes_one_line_and_a_next_step() -> None:
    host = HostEntry("studio", "ada@studio", "", ("solorun",))
    for said, advice in {
        "ssh: Could not resolve hostname studio: Name or service not known": "check the name",
        "ada@studio: Permission denied (publickey).": "log in by hand to see why: ssh ada@studio",
        "No ED25519 host key is known for x\nHost key verification failed.": "log in once by hand",
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": "another than before",
        "ssh: connect to host studio port 22: Connection refused": "is sshd running",
        "ssh: connect to host studio port 22: Connection timed out": "not known to have ended",
    }.items():
        error = remote.unreachable(host, said.splitlines()[-1], said)
        assert error.exit_code == 6
        assert advice in error.next_step
        assert error.what == f"host studio cannot be reached: {said.splitlines()[-1]}"
    lost = remote.unreachable(host, "Timeout, server studio not responding.")
    assert lost.what.startswith("the connection to host studio was lost")


BOX = HostEntry("box", "ada@box", "~/kssm", ("solorun",))


def answer(said: object, code: int = 0, err: str = "", version: str = "0.1.0") -> Answer:
    return Answer(version, code, said if isinstance(said, str) else json.dumps(said), err)


def test_another_schema_or_a_failed_status_is_told_with_both_versions() -> None:
    with pytest.raises(Unreachable) as told:
        hosts.read_report(BOX, answer({"schema": 2, "runs": []}, version="9.0.0"), 0)
    assert told.value.what == "host box has solorun 9.0.0, here 0.1.0: its status has schema 2, this one reads 1"
    with pytest.raises(Unreachable) as told:
        hosts.read_report(BOX, answer("", 2, "usage: x\nsolorun: error: invalid choice: 'status'\n", "0.0.9"), 0)
    assert "has solorun 0.0.9, here 0.1.0: its status failed: solorun: error: invalid choice" in told.value.what


def surveyed(state: Path, reply: Answer | SolorunError, now: float = 100.0) -> hosts.Reached | hosts.NotReached:
    def ask(_host: HostEntry, _words: object) -> Answer:
        if isinstance(reply, SolorunError):
            raise reply
        return reply

    return hosts.survey([BOX], (), ask, state, lambda: now)[0]


REPORT = {"schema": 1, "host": "box", "runs": [{"directory": "/x", "state": "running"}]}


def test_what_a_host_said_is_kept_for_the_time_when_it_does_not_answer(tmp_path: Path) -> None:
    assert isinstance(surveyed(tmp_path, answer(REPORT)), hosts.Reached)
    kept = tmp_path / "hosts" / "box.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["box.json"]
    found = surveyed(tmp_path, Unreachable("gone"), now=160)
    assert isinstance(found, hosts.NotReached)
    assert found.last is not None
    assert (found.last.seen, found.last.runs) == (100.0, REPORT["runs"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff", b'{"schema": 2}', b"null"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    surveyed(tmp_path, answer(REPORT))
    (tmp_path / "hosts" / "box.json").write_bytes(content)
    found = surveyed(tmp_path, Unreachable("gone"))
    assert isinstance(found, hosts.NotReached)
    assert found.last is None


def test_the_memory_of_another_machine_under_the_same_name_is_not_shown(tmp_path: Path) -> None:
    surveyed(tmp_path, answer(REPORT))
    assert hosts.recall(tmp_path, BOX) is not None
    assert hosts.recall(tmp_path, HostEntry("box", "eve@other", "~/kssm", ("solorun",))) is None


def test_a_name_with_a_slash_stays_within_the_folder(tmp_path: Path) -> None:
    for name in ("../../etc/x", "a/b", ".", "é", "%2f.", "a b"):
        host = HostEntry(name, "x", "", ("solorun",))
        hosts.remember(tmp_path, host, hosts.Report(1.0, "0.1.0", 0, REPORT))
        assert hosts.recall(tmp_path, host) is not None
    assert len(list((tmp_path / "hosts").glob("*.json"))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def test_a_memory_that_cannot_be_written_does_not_spoil_the_answer(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a file in its place")
    assert isinstance(surveyed(tmp_path, answer(REPORT)), hosts.Reached)


def test_a_slow_host_delays_nobody(tmp_path: Path) -> None:
    entries = [HostEntry(f"h{i}", "x", "", ("solorun",)) for i in range(8)]

    together = threading.Barrier(len(entries), timeout=20)

    def ask(_host: HostEntry, _words: object) -> Answer:
        together.wait()  # one after the other, the first would wait for ever
        return answer(REPORT)

    found = hosts.survey(entries, (), ask, tmp_path, time.time)
    assert [one.host.name for one in found] == [f"h{i}" for i in range(8)]
    assert all(isinstance(one, hosts.Reached) for one in found)


def fake_ssh(spawn: Spawner, code: str) -> Client:
    body = spawn.program("fake-ssh.py", f"import os, sys, time\nargs = sys.argv[1:]\n{code}")
    # Through a shell: the first line of a script cannot name an interpreter whose path has spaces.
    program = spawn.program("fake-ssh", f'#!/bin/sh\nexec {PYTHON} {shlex.quote(str(body))} "$@"\n')
    program.chmod(0o755)
    return Client((str(program),), None, 0.5)


def test_a_host_that_says_nothing_is_given_up_at_the_deadline(spawn: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, spawn.mark)  # by which its ssh is found, however far that has got by the deadline
    client = fake_ssh(spawn, "time.sleep(60)")
    client = Client(client.program, None, 2.0)
    began: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: began.append(begin(*a, **b)) or began[-1])
    with pytest.raises(Unreachable, match="no answer within 2 s"):
        remote.ask(BOX, ["status"], client)
    assert [child.returncode for child in began] == [-signal.SIGKILL]
    assert spawn.descendants() == []


def test_a_shared_connection_carries_no_mark_of_the_run_that_opened_it(
    spawn: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = ("SOLORUN_RUN_ID", "SOLORUN_LOCK_FD", "SOLORUN_SUPERVISOR")
    for name in marks:
        monkeypatch.setenv(name, "7")
    code = f"print('solorun 1.0.0')\nprint([name for name in {marks} if name in os.environ])"
    client = Client(fake_ssh(spawn, code).program, None, 20)
    assert remote.ask(BOX, ["status"], client).out == "[]\n"


def test_what_needs_attention_there_names_the_host_and_what_was_only_seen_gets_no_advice() -> None:
    row = {"directory": "/home/ada/kssm/results/a", "state": "hung", "detail": "stopped (T)", "pid": 7, "step": 3}
    report = hosts.Report(40.0, "0.1.0", 0, {"schema": 1, "cwd": "/home/ada/kssm", "runs": [row]})
    now = hosttable.hosts_and_runs([hosts.Reached(BOX, report)], [], 100.0)
    assert now[1].split() == ["box", "results/a", "hung", "7", "-", "3", "-", "-", "-"]
    assert now[2] == "  stopped (T)"
    assert "--host box results/a" in now[3]
    then = hosttable.hosts_and_runs([hosts.NotReached(BOX, Unreachable("box is off"), report)], [], 100.0)
    assert then[1].split() == ["box", "results/a", "last", "seen", "hung", "-", "-", "3", "-", "-", "-"]
    assert then[2:] == ["box is off", "  last seen 60 s ago; unreachable is not dead: its runs may go on"]
    odd = hosts.Report(1.0, "0.1.0", 0, {"schema": 1, "runs": [{}, {"state": 5, "rate": "x", "directory": "a\x1b[1m"}]})
    assert "\x1b" not in "".join(hosttable.hosts_and_runs([hosts.Reached(BOX, odd)], [], 2.0))


def test_a_login_shell_may_print_before_the_answer(spawn: Spawner) -> None:
    client = fake_ssh(spawn, "print('Welcome to solorun country\\nsolorun 0.0.9\\n{}')")
    client = Client(client.program, None, 20)
    assert remote.ask(BOX, ["status"], client) == Answer("0.0.9", 0, "{}\n", "")


def test_without_an_ssh_client_the_person_is_told() -> None:
    with pytest.raises(BadUsage, match="cannot execute '/no/such/ssh'"):
        remote.ask(BOX, [], Client(("/no/such/ssh",), None, 1))
    with pytest.raises(BadUsage, match="cannot execute '/no/such/ssh'"):
        remote.forward(BOX, ["check"], Client(("/no/such/ssh",), None, 1), terminal=False, reads=False)


def test_a_lost_connection_becomes_a_hang_up(spawn: Spawner) -> None:
    read, write = os.pipe()
    code = """
        import os, time
        from solorun.forwarded import heed_the_connection
        heed_the_connection(os.environ)
        assert "SOLORUN_FORWARDED" not in os.environ
        os.write(1, b"ready")
        time.sleep(60)
    """
    child = spawn.python(code, stdout=write, env={forwarded.VARIABLE: "1"})
    os.close(write)
    assert select.select([read], [], [], 20)[0]
    assert os.read(read, 100) == b"ready"
    os.close(read)
    wait_until(lambda: child.popen.poll() is not None)
    assert child.popen.returncode == -signal.SIGHUP


def test_a_reader_that_stays_is_no_hang_up_and_without_the_mark_nothing_is_watched(spawn: Spawner) -> None:
    code = """
        import os, threading
        from solorun.forwarded import heed_the_connection
        heed_the_connection(os.environ)
        print(threading.active_count(), flush=True)
        os.close(1)
    """
    for env, threads in (({forwarded.VARIABLE: "1"}, "2"), ({forwarded.VARIABLE: ""}, "1")):
        child = spawn.python(code, env=env)
        assert child.wait() == 0
        assert child.text().strip() == threads


ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"
"""What another host's words may hold: a window's title, a colour, a cleared screen, letters that run backwards."""

ROW = {
    "directory": "/r", "state": "hung", "pid": 7, "user": "ada", "since": 1.0, "step": 3, "total": 9, "rate": 1.0,
    "eta_s": 1.0, "log_age_s": 1.0, "step_age_s": 1.0, "phase": "training", "run_id": "r", "host": "box",
    "command": ["x"], "memory_bytes": 9, "ended": None, "detail": "stopped", "kept_by": None, "checkpoint": 3,
    "checkpoint_age_s": 1.0, "waiting": [],
}  # fmt: skip
WAITER = {"pid": 8, "user": "bob", "for_s": 3.0}

ODD_RUNS = [
    [{**ROW, key: ESCAPE} for key in ROW]
    + [{**ROW, key: [ESCAPE]} for key in ROW]
    + [{**ROW, "state": state, "kept_by": ESCAPE, "ended": ESCAPE} for state in ("stale", "idle", ESCAPE)]
    + [{**ROW, "waiting": [{**WAITER, key: ESCAPE}]} for key in WAITER]
    + [{**ROW, "waiting": [ESCAPE]}, {**ROW, "waiting": {ESCAPE: ESCAPE}}, {ESCAPE: ESCAPE}],
    [ESCAPE, None, 7, [ESCAPE]],
]


@pytest.mark.parametrize("runs", [*([row] for row in ODD_RUNS[0]), ODD_RUNS[0], ODD_RUNS[1]])
def test_no_word_of_another_host_commands_the_terminal_or_breaks_the_table(runs: list[object]) -> None:
    said = {"schema": 1, "host": ESCAPE, "cwd": ESCAPE, "version": ESCAPE, "runs": runs}
    report = hosts.read_report(BOX, Answer(ESCAPE, 0, json.dumps(said), ""), 1.0)
    for found in (hosts.Reached(BOX, report), hosts.NotReached(BOX, Unreachable("off"), report)):
        lines = [*hosttable.hosts_and_runs([found], [], 2.0), *map(str, cli_hosts._cells(found, 2.0))]
        assert all(line.isprintable() for line in lines), lines


@pytest.mark.parametrize("words", [("hosts",), ("status", "--all-hosts"), ("status", "--host", "box")])
@pytest.mark.parametrize("answer", ["report", "another schema", "no report", "no solorun"])
def test_an_answer_full_of_escapes_reaches_the_terminal_only_spelled_out(
    spawn: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    answer: str,
) -> None:
    runs = [{**ROW, "directory": ESCAPE, "detail": ESCAPE, "user": ESCAPE, "phase": ESCAPE}]
    report = json.dumps({"schema": ESCAPE if answer == "another schema" else 1, "cwd": ESCAPE, "runs": runs})
    greeting = "" if answer == "no solorun" else f"solorun 0.0.9{ESCAPE}\n"
    body = ESCAPE if answer == "no report" else report
    says = f"sys.stdout.buffer.write({(greeting + body).encode()!r}); sys.stderr.buffer.write({ESCAPE.encode()!r})"
    (program,) = fake_ssh(spawn, f"{says}; sys.exit({0 if greeting else 127})").program
    monkeypatch.setenv("SOLORUN_SSH", program)
    monkeypatch.setenv("SOLORUN_STATE", str(tmp_path / "state"))
    (tmp_path / "solorun.toml").write_text('[hosts.box]\nssh = "box"\n')
    monkeypatch.chdir(tmp_path)
    main(list(words))
    said = capsys.readouterr()
    text = said.out + said.err
    assert "box" in text
    assert all(line.isprintable() for line in text.splitlines()), text
    assert "Traceback" not in text
