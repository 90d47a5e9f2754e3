"""Notices: what is handed over, and every way in which handing over can go well or wrong."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solorun import notify
from solorun.cli.main import main
from solorun.notice import Notice, called, message, wants
from solorun.notify import deliver, reachable, send
from solorun.settings import NotifyEntry

from .stage import DEADLINE_S, events, wait_until

ALL = frozenset({"end", "crash", "hang", "memory", "disk"})
CRASH = Notice(
    occasion="crash",
    directory="/home/ada/results/mine",
    run_id="20261123-213000-0a1b2c3d",
    host="studio",
    user="ada",
    time=1795469400.25,
    text="killed at step 12 of 300 after 5 min (SIGKILL); newest checkpoint checkpoint_10.bin",
    facts={"state": "killed", "signal": 9},
)


def by_command(*argv: str, on: frozenset[str] = ALL) -> NotifyEntry:
    return NotifyEntry(on, argv, "", "")


def by_webhook(url: str) -> NotifyEntry:
    return NotifyEntry(ALL, (), url, "")


def by_apprise(url: str) -> NotifyEntry:
    return NotifyEntry(ALL, (), "", url)


def problem(entry: NotifyEntry, deadline_s: float = DEADLINE_S) -> str:
    (one,) = deliver([CRASH], [entry], os.environ, deadline_s)
    return one.problem


# What is handed over: frozen.


def test_the_json_the_line_and_the_variables_of_a_notice() -> None:
    told = message(CRASH)
    line = (
        "/home/ada/results/mine on studio: killed at step 12 of 300 after 5 min (SIGKILL); "
        "newest checkpoint checkpoint_10.bin"
    )
    assert json.loads(told.body) == {
        "schema": 1,
        "occasion": "crash",
        "time": 1795469400.25,
        "host": "studio",
        "user": "ada",
        "directory": "/home/ada/results/mine",
        "run_id": "20261123-213000-0a1b2c3d",
        "text": line,
        "facts": {"state": "killed", "signal": 9},
    }
    assert told.body.endswith(b"}\n")
    assert told.line == line
    assert told.environment == {
        "SOLORUN_NOTICE": "crash",
        "SOLORUN_TEXT": line,
        "SOLORUN_DIRECTORY": "/home/ada/results/mine",
        "SOLORUN_HOST": "studio",
        "SOLORUN_USER": "ada",
        "SOLORUN_RUN": "20261123-213000-0a1b2c3d",
    }


def test_a_line_is_one_line_whatever_a_directory_is_called() -> None:
    told = message(Notice("end", "/a\nb\x1b[2J", "r", "h", "u", 0.0, "x" * 5000, {}))
    assert told.line.isprintable()
    assert len(told.line) == 1000


@pytest.mark.parametrize(
    ("on", "occasion", "wanted"),
    [
        ({"end"}, "end", True),
        ({"end"}, "crash", True),
        ({"crash"}, "crash", True),
        ({"crash"}, "end", False),
        ({"end", "crash"}, "hang", False),
        ({"memory"}, "memory", True),
        ({"disk"}, "test", True),
    ],
)
def test_who_is_told_of_what(on: set[str], occasion: str, wanted: bool) -> None:
    notice = Notice(occasion, "/d", "r", "h", "u", 0.0, "", {})
    assert wants(by_command("x", on=frozenset(on)), notice) is wanted


def test_who_asks_for_ends_and_crashes_is_told_of_a_crash_once() -> None:
    assert len(deliver([CRASH], [by_command("true", on=frozenset({"end", "crash"}))], os.environ)) == 1


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (by_command("/bin/tell me", "token"), "command /bin/tell me"),
        (by_webhook("https://ada:pw@example.org:8443/T0/secret?key=1"), "webhook https://example.org:8443"),
        (by_webhook("https://example.org?key=1"), "webhook https://example.org"),
        (by_apprise("slack://secret/token"), "apprise slack"),
    ],
)
def test_an_entry_is_named_without_its_secrets(entry: NotifyEntry, name: str) -> None:
    assert called(entry) == name


# Commands.


def test_a_command_gets_json_variables_and_a_session_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "tell me"
    script.write_text(f"#!/bin/sh\ncat > {shlex.quote(str(tmp_path / 'got'))}\n")
    script.chmod(0o755)
    assert problem(by_command(str(script))) == ""
    assert (tmp_path / "got").read_bytes() == message(CRASH).body
    code = "import os, sys; sys.exit(f'{os.getsid(0) == os.getpid()} {os.environ[\"SOLORUN_NOTICE\"]}')"
    assert problem(by_command(sys.executable, "-c", code)) == "exit status 1: True crash"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("sh", "-c", "echo 'no\nroute' >&2; exit 7"), "exit status 7: no route"),
        (("false",), "exit status 1"),
        (("sh", "-c", "kill -9 $$"), "killed by signal 9"),
        (("no-such-program-here",), "cannot be executed: No such file or directory"),
        (("sh", "-c", "exec <&-; echo reads nothing"), ""),
    ],
)
def test_a_command_that_fails_is_told_in_one_line(argv: tuple[str, ...], words: str) -> None:
    assert problem(by_command(*argv)) == words


def test_the_words_of_a_command_are_heard_however_late_its_reader_gets_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.read

    def late(fd: int, size: int) -> bytes:
        time.sleep(0.6)
        return real(fd, size)

    with monkeypatch.context() as busy:
        busy.setattr(os, "read", late)
        said = problem(by_command("sh", "-c", "echo no route; exit 7"))
    assert said == "exit status 7: no route"


def test_a_child_that_goes_on_talking_keeps_nobody_waiting(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    talking = "while :; do echo and on; done"
    line = f"sh -c '{talking}' & echo $! > {shlex.quote(str(pids))}; exit 7"
    try:
        assert problem(by_command("sh", "-c", line)).startswith("exit status 7")
    finally:
        os.kill(int(pids.read_text()), 9)


def test_a_command_that_hangs_is_killed_with_its_children_at_the_deadline(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    line = f"sleep 600 & echo $! > {shlex.quote(str(pids))}; wait"
    began = time.monotonic()

    def child_of_one_that_was_killed(deadline_s: float) -> int:  # 0: before it had one, on a busy machine
        assert problem(by_command("sh", "-c", line), deadline_s) == f"no end within {deadline_s:g} s; killed"
        return int(pids.read_text() or 0) if pids.exists() else 0

    child = next(filter(None, map(child_of_one_that_was_killed, (0.5, 2.5, 12.5))))
    assert time.monotonic() - began < DEADLINE_S
    wait_until(lambda: not _lives(child))


def _lives(pid: int) -> bool:
    from solorun import process
    from solorun.owner import Gone

    return not isinstance(process.probe(pid), Gone)


def test_a_child_that_a_command_leaves_behind_delays_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    assert problem(by_command("sh", "-c", f"sleep 600 & echo $! > {shlex.quote(str(pids))}")) == ""
    assert time.monotonic() - began < DEADLINE_S
    os.kill(int(pids.read_text()), 9)


# Webhooks: a real server on this machine.


class Hook:
    """A server that answers as a test wants, and keeps what it was sent."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.bodies: list[tuple[str, str, bytes]] = []
        self.stop = threading.Event()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.bodies.append((self.path, self.headers["Content-Type"], body))
                answer(self)

            do_GET = do_POST  # noqa: N815 - the name that the server calls

            def log_message(self, *_words: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?key=secret"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hook]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    opened: list[Hook] = []

    def start(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Hook:
        opened.append(Hook(answer))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def answers(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_a_webhook_gets_the_json_by_post(hook: Callable[..., Hook]) -> None:
    server = hook(answers(204))
    assert problem(by_webhook(server.url)) == ""
    assert server.bodies == [("/hook?key=secret", "application/json", message(CRASH).body)]


def test_a_webhook_that_answers_500_has_failed(hook: Callable[..., Hook]) -> None:
    assert problem(by_webhook(hook(answers(500)).url)) == "answered 500 Internal Server Error"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(hook: Callable[..., Hook], code: int) -> None:
    elsewhere = hook(answers(200))
    server = hook(answers(code, Location=elsewhere.url))
    assert "it redirects, write the final URL" in problem(by_webhook(server.url))
    assert elsewhere.bodies == []


def test_a_webhook_that_closes_in_mid_answer_has_failed(hook: Callable[..., Hook]) -> None:
    server = hook(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))
    assert problem(by_webhook(server.url)).startswith(("gave no", "not reached"))


def test_a_webhook_that_hangs_is_left_at_the_deadline(
    hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    server = hook(lambda _handler: release.wait(60))
    monkeypatch.setattr(notify, "WEBHOOK_S", 0.3)
    assert "timed out" in problem(by_webhook(server.url))
    monkeypatch.setattr(notify, "WEBHOOK_S", 60)
    monkeypatch.setattr(notify, "_REAPING_S", 0.0)
    assert problem(by_webhook(server.url), 0.3) == "no end within 0.3 s"
    release.set()


def test_a_webhook_that_nobody_serves_is_not_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/secret"
        said = problem(by_webhook(url))
    assert said.startswith("not reached:")
    assert "secret" not in said


def test_no_other_scheme_is_opened(tmp_path: Path) -> None:
    assert problem(by_webhook((tmp_path / "x").as_uri())) == "not an http or https URL"


def test_one_that_fails_does_not_keep_another_from_being_told(hook: Callable[..., Hook]) -> None:
    server = hook(answers(200))
    found = deliver([CRASH], [by_command("false"), by_webhook(server.url), by_webhook("http://[")], os.environ)
    assert [bool(one.problem) for one in found] == [True, False, True]


# Apprise.

FAKE = """
class Apprise:
    def add(self, url):
        self.url = url
        return url.startswith("good://")
    def notify(self, title, body):
        if self.url == "good://raises":
            raise RuntimeError("secret")
        open(self.url[7:], "w").write(title + "|" + body)
        return True
"""


@pytest.fixture
def fake_apprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apprise.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "apprise", raising=False)


def test_without_apprise_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert problem(by_apprise("slack://x")) == "the package apprise is missing: pip install 'solorun[notify]'"


def test_without_apprise_only_the_entries_that_need_it_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert reachable([by_apprise("slack://x"), by_command("true")]) == (by_command("true"),)


@pytest.mark.usefixtures("fake_apprise")
def test_apprise_is_given_title_and_line(tmp_path: Path) -> None:
    assert problem(by_apprise(f"good://{tmp_path}/out")) == ""
    assert (tmp_path / "out").read_text() == f"solorun: crash of mine|{message(CRASH).line}"
    assert problem(by_apprise("bad://x")) == "apprise does not understand the URL"
    assert problem(by_apprise("good://raises")) == "failed with RuntimeError"


# The courier.


def test_a_courier_writes_down_what_became_of_each_notice(results: Path) -> None:
    notice = Notice("end", str(results), "r1", "h", "u", 0.0, "completed", {})
    courier = send([notice], [by_command("true"), by_command("sh", "-c", "echo no; exit 3")], os.environ)
    assert courier is not None
    assert courier.wait(DEADLINE_S) == 0
    assert sorted(events(results)) == ["notice failed", "notified"]
    line = "solorun: WARNING: notice of end by command sh failed: exit status 3: no\n"
    assert (results / "training.log").read_text() == line


def test_a_courier_knows_neither_lock_nor_arguments_that_others_could_read(results: Path) -> None:
    lock = os.open(results, os.O_RDONLY)
    os.set_inheritable(lock, True)
    notice = Notice("end", str(results), "r1", "h", "u", 0.0, "completed", {})
    probe = f"ls -l /proc/self/fd /proc/$PPID/fd; tr '\\0' ' ' < /proc/$PPID/cmdline; : {'SECRET'}"
    seen = results.parent / "seen"
    entry = by_command("sh", "-c", f"({probe}) > {shlex.quote(str(seen))} 2>&1")
    courier = send([notice], [entry], os.environ)
    os.close(lock)
    assert courier is not None
    assert courier.wait(DEADLINE_S) == 0
    if sys.platform == "linux":
        text = seen.read_text()
        assert "solorun.notify" in text
        assert str(results) + "\n" not in text
        assert "SECRET" not in text


def test_nobody_is_started_when_nobody_wants_to_know() -> None:
    assert send([CRASH], [by_command("x", on=frozenset({"disk"}))], os.environ) is None


def test_nothing_is_written_into_a_directory_that_took_the_place_of_the_runs(results: Path) -> None:
    gate = results.parent / "go"
    line = f"while ! test -e {shlex.quote(str(gate))}; do sleep 0.05; done"
    notice = Notice("end", str(results), "r1", "h", "u", 0.0, "completed", {})
    courier = send([notice], [by_command("sh", "-c", line)], os.environ)
    results.rename(results.with_name("moved"))
    results.mkdir()
    gate.touch()
    assert courier is not None
    courier.wait(DEADLINE_S)
    assert list(results.iterdir()) == []


# The verb.


def say(capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["notify"])
    out, err = capfd.readouterr()
    return code, out, err


def test_a_test_notice_tells_of_every_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tell").write_text("#!/bin/sh\necho $SOLORUN_NOTICE > told\n")
    (tmp_path / "tell").chmod(0o755)
    toml = tmp_path / "solorun.toml"
    toml.write_text('[[notify]]\non = ["disk"]\ncommand = ["./tell"]\n')
    code, out, _ = say(capfd)
    assert code == 0
    assert out.split()[-1] == "sent"
    assert (tmp_path / "told").read_text() == "test\n"
    toml.write_text(toml.read_text() + '[[notify]]\ncommand = "false"\n')
    code, out, _ = say(capfd)
    assert code == 1
    assert [line.split("  ")[-1].strip() for line in out.splitlines()] == ["sent", "exit status 1"]


def test_without_entries_the_test_says_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = say(capfd)
    assert code == 2
    assert "add [[notify]]" in err
