"""Another user's run, a record of another host, another PID namespace: refused with exit 7, and nothing is touched."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import process
from solorun.cli.main import main
from solorun.owner import encode_owner
from tests.guard.stage import HOLDING, as_nobody, owner_of, snapshot
from tests.processes.conftest import ROOT, progress_of, until

Start = Callable[..., subprocess.Popen[str]]
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a trainer that holds a directory until it is stopped; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(directory: Path, *before: str) -> subprocess.Popen[str]:
        code = "\n".join(line[4:] for line in HOLDING.splitlines())
        command = [*before, sys.executable, "-c", code, str(directory)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "holding\n"
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def namespaced() -> None:
    if shutil.which("unshare") is None or os.getuid() != 0:
        pytest.skip("only root, and with unshare(1), can make a PID namespace here")
    made = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no PID namespace can be made here: {made.stderr.decode().strip()}")


def solorun(*words: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "solorun", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def untouched(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file but the heartbeat, which the run itself writes."""
    return {name: facts for name, facts in snapshot(directory).items() if name != "progress"}


def refused(directory: Path, words: str, *before: str) -> None:
    """Stop and start refuse with 7, check calls it unsafe, status foreign; every file stays as it was."""
    files = untouched(directory)
    for told in (
        solorun("stop", directory, before=before),
        solorun("stop", "--kill", "--grace", "0", directory, before=before),
        solorun("start", directory, "--", "true", before=before),
    ):
        assert told.returncode == 7, told.stdout + told.stderr
        assert words in told.stderr
        assert "next: ask on host" in told.stderr
        assert "Traceback" not in told.stderr
    assert solorun("check", directory, before=before).returncode == 4
    (row,) = json.loads(solorun("status", "--json", directory, before=before).stdout)["runs"]
    assert row["state"] == "foreign"
    assert untouched(directory) == files


def test_a_run_of_another_host(tmp_path: Path) -> None:
    me = process.identify_self()
    there = replace(me, here=replace(me.here, boot="another boot", machine="far/1", host="far"))
    (tmp_path / "training.owner.json").write_bytes(encode_owner(owner_of(tmp_path, there)))
    (tmp_path / "training.lock").write_text(f"{there.pid}\n")
    refused(tmp_path, "host 'far'")


@pytest.mark.usefixtures("namespaced")
def test_a_run_in_a_pid_namespace_of_its_own(start: Start, tmp_path: Path) -> None:
    child = start(tmp_path, *NAMESPACE)
    refused(tmp_path, "another PID namespace")
    assert child.poll() is None
    seen = progress_of(tmp_path)
    assert seen is not None
    until(lambda: (beat := progress_of(tmp_path)) is not None and beat.step > seen.step)


@pytest.mark.usefixtures("namespaced")
def test_from_within_a_pid_namespace_a_run_outside_it(start: Start, tmp_path: Path) -> None:
    child = start(tmp_path)
    refused(tmp_path, "another PID namespace", *NAMESPACE)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130


def test_a_run_of_another_user(open_place: Path, start: Start) -> None:
    child = start(open_place)
    files = untouched(open_place)

    def ask(*words: str) -> list[object]:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main([*words, str(open_place)])
        return [code, said.getvalue()]

    importlib.import_module("solorun.cli.stop")  # another user may not be able to read this very Python
    code, said = as_nobody(lambda: ask("stop"))
    assert (code, "belongs to" in said, "Traceback" in said) == (7, True, False)
    assert as_nobody(lambda: ask("stop", "--kill", "--grace", "0"))[0] == 7
    assert ask("check")[0] == 4  # also loads what another user may not be able to read
    answer = as_nobody(lambda: ask("check"))
    assert answer[0] == 4, answer
    assert untouched(open_place) == files
    assert child.poll() is None


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A results directory that any user may write, though not the files of the run in it."""
    place = Path(tempfile.mkdtemp(prefix="solorun-test-"))
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)
