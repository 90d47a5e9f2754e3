"""`kssm/check_training_status.sh` (P15): three sections, right with odd names, read-only, a useful exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes.conftest import ROOT

SCRIPT = ROOT / "kssm" / "check_training_status.sh"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]
ODD = ("plain", "with space", 'it\'s "quoted"', "$(touch owned)", "new\nline", "-n")


def ask(*roots: Path, shell: str = "sh", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(["busybox", "sh"] if shell == "busybox" else [shell]), str(SCRIPT), *map(str, roots)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=600, check=False)


def dead_pid() -> int:
    gone = subprocess.Popen(["true"])
    gone.wait()
    return gone.pid


@pytest.mark.parametrize("shell", SHELLS)
def test_it_tells_living_from_dead_locks_whatever_their_directories_are_called(shell: str, tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        directory = tmp_path / "results" / name
        directory.mkdir(parents=True)
        pid = os.getpid() if number % 2 else dead_pid()
        (directory / "training.lock").write_text(f"{pid}\n")
        (directory / "training.log").write_text("one\ntwo\nthree \x1b[2J\nfour\n")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    told = ask(tmp_path / "results", shell=shell, cwd=tmp_path)
    assert told.stderr == ""
    assert [line for line in told.stdout.splitlines() if line.startswith("[")] == [
        "[1] Running training processes", "[2] Lock files", "[3] Recent log activity",
    ]  # fmt: skip
    assert told.stdout.count("is ALIVE") == told.stdout.count("is DEAD (stale)") == len(ODD) // 2
    assert told.stdout.count("    | four") == len(ODD)
    assert "    | one" not in told.stdout
    assert "\x1b" not in told.stdout
    assert "with space" in told.stdout
    assert told.returncode == 4
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", ["", "not a pid\n", "-1\n"])
def test_a_label_that_names_no_process_is_stale(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.lock").write_text(content)
    told = ask(tmp_path)
    assert "names no process (stale)" in told.stdout
    assert told.returncode == 4


def test_with_nothing_to_tell_it_exits_0(tmp_path: Path) -> None:
    told = ask(tmp_path)
    assert told.returncode == 0
    assert told.stdout.count("  none") >= 2


def test_a_root_that_is_not_there_exits_2(tmp_path: Path) -> None:
    told = ask(tmp_path / "nowhere")
    assert told.returncode == 2
    assert "no such directory" in told.stderr
