"""What the guard's tests share: children that are always reaped, deadlines instead of sleeps, another user."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import process
from solorun.owner import Alive, Owner, ProcessId

MARK = "SOLORUN_TEST_MARK"
PYTHON = shlex.quote(sys.executable)
"""For lines that a shell reads: a checkout may lie under a path with spaces."""


def quoted(path: Path) -> str:
    """A path for a line that a shell reads."""
    return shlex.quote(str(path))


NOBODY = 65534
DEADLINE_S = 60.0
"""For what comes within a second on a quiet machine: others are shared, and ten times slower."""


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S, what: object = "") -> Any:
    """Poll until a condition is true, and give its value; fail when the deadline passes."""
    end = time.monotonic() + deadline_s
    while True:
        late = time.monotonic() > end  # asked first: who was held up until the deadline still looks once after it
        value = condition()
        if value:
            return value
        if late:
            pytest.fail(f"not within {deadline_s:g} s: {what() if callable(what) else what or condition}")
        time.sleep(0.01)


class Child:
    """A process whose output goes to a file, so that nothing blocks and everything can be looked at."""

    def __init__(self, argv: Sequence[str], output: Path, env: dict[str, str], **options: Any) -> None:
        self.output = output
        with output.open("wb") as file:
            options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, **options}
            self.popen = subprocess.Popen(list(argv), env=env, **options)
        self.pid = self.popen.pid

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, words: str, deadline_s: float = DEADLINE_S) -> str:
        """Wait until the child has printed these words; what it printed so far."""

        def said() -> bool:
            if words in self.text():
                return True
            if self.popen.poll() is not None and words not in self.text():
                pytest.fail(f"ended with {self.popen.returncode} before it said {words!r}:\n{self.text()}")
            return False

        wait_until(said, deadline_s, lambda: f"{words!r} in {self.text()!r}")
        return self.text()

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        try:
            return self.popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"did not end within {deadline_s:g} s:\n{self.text()}")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def state(self) -> str:
        seen = process.probe(self.pid)
        return seen.state if isinstance(seen, Alive) else "gone"


class Spawner:
    """Starts children; everything that was started, and everything they started, is ended with the test."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mark = uuid.uuid4().hex
        self.children: list[Child] = []

    def environment(self, **more: str) -> dict[str, str]:
        own = ("SOLORUN_RUN_ID", "SOLORUN_LOCK_FD", "SOLORUN_SUPERVISOR", "SOLORUN_ROOTS")
        kept = {key: value for key, value in os.environ.items() if key not in own}
        return {**kept, MARK: self.mark, "PYTHONUNBUFFERED": "1", **more}

    def __call__(self, *argv: str, env: dict[str, str] | None = None, **options: Any) -> Child:
        output = self.place / f"child-{len(self.children)}.out"
        child = Child(argv, output, self.environment(**(env or {})), **options)
        self.children.append(child)
        return child

    def python(self, code: str, *argv: str | Path, **options: Any) -> Child:
        """A Python child with this program."""
        return self(sys.executable, "-c", textwrap.dedent(code), *map(str, argv), **options)

    def solorun(self, *argv: str | Path, **options: Any) -> Child:
        """The command itself, as a process of its own."""
        return self(sys.executable, "-m", "solorun", *map(str, argv), **options)

    def program(self, name: str, code: str) -> Path:
        """A program on disk."""
        path = self.place / name
        path.write_text(textwrap.dedent(code))
        return path

    def descendants(self) -> list[ProcessId]:
        own = os.getpid()
        found = (
            p for p in process.system.pids() if p != own and process.system.environment_value(p, MARK) == self.mark
        )
        return [one for p in found if (one := process.identify(p)) is not None]

    def end(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while living := self.descendants():
            for one in living:
                process.send(one, signal.SIGKILL)
            for child in self.children:
                child.popen.poll()
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for child in self.children:
            if child.popen.poll() is None:
                child.popen.kill()
            child.popen.wait(DEADLINE_S)


def a_dead_pid() -> int:
    """The PID of a process that has just ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


def as_nobody(question: Callable[[], Any]) -> Any:
    """The answer of a function run by another user; what it raises becomes the text `Name: message`."""
    if os.getuid() != 0:
        pytest.skip("only root can ask as another user")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = question()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(data)


def owner_of(directory: Path, of: ProcessId, run_id: str = "20260101-000000-aaaaaaaa", **more: Any) -> Owner:
    """A record that says: this process holds this directory."""
    facts = Owner(
        run_id=run_id,
        process=of,
        supervisor=None,
        adopted=True,
        user="ada",
        argv=("python3", "train.py"),
        cwd="/home/ada",
        since=time.time() - 60,
        directory=str(directory),
        directory_inode=directory.stat().st_ino,
    )
    return replace(facts, **more)


def names(directory: Path) -> set[str]:
    """What stands in a directory."""
    return set(os.listdir(directory))


def events(directory: Path) -> list[str]:
    """The names of the journal's events."""
    return [row["event"] for row in whole_rows(directory / "events.jsonl")]


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that is being written: those that are whole; none while there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    # A line across two pages of the file appears in two steps, even when it is written in one.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def run_record(directory: Path) -> dict[str, Any]:
    """`run.json` as it stands."""
    found: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return found


def label_of(directory: Path) -> int:
    """The PID in `training.lock`, 0 when there is none."""
    try:
        return int((directory / "training.lock").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def snapshot(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, inode and modification time of every file."""
    return {
        path.name: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in directory.iterdir()
        if path.is_file()
    }


class Terminal:
    """A real terminal with a program in its foreground."""

    def __init__(self, argv: Sequence[str], env: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], list(argv), env)
        os.set_blocking(self.fd, False)
        self.seen = ""
        self.status: int | None = None

    def read(self) -> str:
        try:
            while data := os.read(self.fd, 1 << 16):
                self.seen += data.decode(errors="replace")
        except OSError:  # nothing new, or the other side is closed
            pass
        return self.seen

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.read(), what=lambda: f"{words!r} in {self.seen!r}")

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        self.read()  # after the end was seen: it may have spoken until then
        return self.status is not None

    def wait(self) -> int:
        wait_until(self.ended, what=lambda: f"the end; seen {self.seen!r}")
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed: the kernel tells everybody in it."""
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.fd >= 0:
            os.close(self.fd)


HOLDING = """
    import sys, time, solorun
    with solorun.hold(sys.argv[1]) as run:
        step = 1
        run.progress(step, 1000000)
        print("holding", flush=True)
        while not run.should_stop:
            time.sleep(0.01)
            step += 1
            run.progress(step, 1000000)
        print("leaving", run.stop_reason, flush=True)
"""
"""A trainer of ten lines: reports steps until it is asked to stop, the first one before it says a word."""
