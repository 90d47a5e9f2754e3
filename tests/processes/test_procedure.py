"""The procedure by hand, its very shell lines, in a copy of the project (clauses P5, P6, P8 to P10, P16 to P18)."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kssm.checkpoint import newest_valid
from solorun import process
from tests.guard.stage import label_of
from tests.processes.conftest import ROOT, progress_of, until


class Project:
    """A copy of the project, with a shell in it, and the trainers that were started there."""

    def __init__(self, place: Path, cache: Path) -> None:
        self.root = place / "the project"
        self.root.mkdir()
        for name in ("kssm", "solorun"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.results = self.root / "results" / "kssm_v3"
        tools = Path(sys.executable).parent
        path = f"{tools}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "KSSM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """One line, as typed; a shell without job control, as over `ssh HOST LINE`.

        bash, because the procedure's `kill -SIGINT` is no POSIX spelling: dash has only `kill -INT`.
        """
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def log(self) -> str:
        return (self.results / "training.log").read_text()

    def trains(self) -> bool:
        beat = progress_of(self.results)
        return bool(beat and beat.phase == "training" and beat.step >= 2 and (self.results / "training.lock").exists())


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Iterator[Project]:
    made = Project(tmp_path, cache)
    yield made
    if pid := label_of(made.results):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


BACKGROUND = (
    "nohup python3 kssm/train_kssm_v3.py > results/kssm_v3/nohup.out 2>&1 &\necho $! > results/kssm_v3/training.pid"
)


def test_p5_p9_foreground_on_a_terminal_ctrl_c_saves_then_releases(project: Project) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.root)
        os.execvpe("python3", ["python3", "kssm/train_kssm_v3.py"], project.environment)
    screen = _Screen(terminal)
    until(lambda: (screen.read() and False) or project.trains(), 200, 0.05)
    assert (project.results / "training.lock").read_text() == f"{pid}\n"  # P17: a single line, the PID
    os.write(terminal, b"\x03")  # P9: Ctrl-C, typed
    until(lambda: (screen.read() and False) or os.waitpid(pid, os.WNOHANG)[0] == pid, every_s=0.05)
    lines = project.log().rstrip().splitlines()
    banner = next(i for i, line in enumerate(lines) if "TRAINING INTERRUPTED - Saving state..." in line)
    saved = next(i for i, line in enumerate(lines) if i > banner and line.startswith("saved checkpoint_"))
    assert lines[-1] == "Released lock"
    assert banner < saved < len(lines) - 1
    assert not (project.results / "training.lock").exists()  # P18
    assert newest_valid(project.results, lambda _line: None) is not None
    assert "Traceback" not in screen.text


def test_p6_p8_p10_background_by_hand_survives_watched_and_stopped(project: Project) -> None:
    project.results.mkdir(parents=True)
    project.shell(BACKGROUND)
    until(project.trains, 200, 0.05)
    pid = int((project.results / "training.pid").read_text())
    assert (project.results / "training.lock").read_text() == f"{pid}\n"
    seen = project.shell("cat results/kssm_v3/training.pid | xargs ps -p")  # P8
    assert str(pid) in seen.stdout
    tail = project.shell("timeout 60 tail -f results/kssm_v3/training.log | grep -m 1 -E 'step|K-SSM v3'")
    assert tail.stdout, tail.stderr
    os.kill(pid, signal.SIGHUP)  # the terminal is closed: nohup survives it
    before = progress_of(project.results)
    assert before is not None
    until(lambda: (beat := progress_of(project.results)) is not None and beat.step > before.step + 2)
    project.shell(f"kill -SIGINT {pid}")  # P10, though the background shell had SIGINT ignored
    until(lambda: not (project.results / "training.lock").exists())
    assert "TRAINING INTERRUPTED - Saving state..." in project.log()
    until(lambda: process.identify(pid) is None)  # after its last line in the log it prints that to its output
    assert project.log().rstrip().endswith("Released lock")
    assert newest_valid(project.results, lambda _line: None) is not None
    complete = re.sub(r"^nohup: .*\n", "", (project.results / "nohup.out").read_text(), flags=re.MULTILINE)
    assert set(project.log().splitlines()) <= set(complete.splitlines())


def test_p16_a_live_lock_aborts_a_dead_one_is_removed(project: Project) -> None:
    project.results.mkdir(parents=True)
    project.shell(BACKGROUND)
    until(project.trains, 200, 0.05)
    pid = int((project.results / "training.pid").read_text())
    second = project.shell("python3 kssm/train_kssm_v3.py")
    assert second.returncode == 3
    assert f"held by PID {pid}" in second.stderr
    os.kill(pid, signal.SIGKILL)  # P18: a killed run leaves its lock behind
    until(lambda: project.shell(f"ps -o stat= -p {pid}").stdout.strip()[:1] in ("", "Z"))
    assert (project.results / "training.lock").exists()
    project.shell(BACKGROUND)
    # The label stands before the journal tells of it, and the killed run's heartbeat until the new one writes its own.
    until(lambda: "taken over" in (project.results / "events.jsonl").read_text(), every_s=0.05)
    until(lambda: project.trains() and (project.results / "training.lock").read_text() != f"{pid}\n", every_s=0.05)
    project.shell("kill -SIGINT $(cat results/kssm_v3/training.pid)")
    until(lambda: not (project.results / "training.lock").exists())


class _Screen:
    """What a terminal showed, read without waiting."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        os.set_blocking(terminal, False)
        self.text = ""

    def read(self) -> str:
        with contextlib.suppress(OSError):  # nothing new, or the terminal is closed
            self.text += os.read(self._terminal, 1 << 16).decode("utf-8", "replace")
        return self.text
