"""`cp -r` of a live run's directory: whatever is done to the copy never reaches the run that it was copied from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from solorun import process, stop
from solorun.stop import StopPolicy, WasNotRunning

from .stage import HOLDING, Child, Spawner, label_of


@pytest.fixture(params=["supervised", "by hand"])
def original(request: pytest.FixtureRequest, spawn: Spawner, results: Path) -> process.ProcessId:
    """A live run's training process."""
    if request.param == "supervised":
        assert spawn.solorun("start", results, "--background", "--", "sleep", "600").wait() == 0
    else:
        spawn.python(HOLDING, results).wait_for("holding")
    found = process.identify(label_of(results))
    assert found is not None
    return found


def copied(results: Path) -> Path:
    copy = results.with_name("copy")
    shutil.copytree(results, copy)
    return copy


def said(spawn: Spawner, *words: str | Path) -> Child:
    child = spawn.solorun(*words)
    child.wait()
    return child


def test_a_stop_of_the_copy_stops_nothing(spawn: Spawner, results: Path, original: process.ProcessId) -> None:
    copy = copied(results)
    assert stop.stop(copy, StopPolicy(1.0, kill=True)) == WasNotRunning()
    assert process.is_alive(original)
    assert said(spawn, "start", copy, "--", "true").popen.returncode == 0
    assert process.is_alive(original)
    assert label_of(results) == original.pid


def test_a_copy_whose_label_was_cleared_is_still_known_for_one(
    spawn: Spawner, results: Path, original: process.ProcessId
) -> None:
    copy = copied(results)
    for name in ("training.lock", "training.owner.json"):
        (copy / name).unlink()
    assert stop.stop(copy, StopPolicy(1.0, kill=True)) == WasNotRunning()
    (row,) = json.loads(said(spawn, "status", "--json", copy).text())["runs"]
    assert row["state"] not in ("orphaned", "running")
    assert said(spawn, "start", copy, "--", "true").popen.returncode == 0
    assert process.is_alive(original)


def test_a_recovery_of_the_copy_ends_nothing(spawn: Spawner, results: Path, original: process.ProcessId) -> None:
    recovery = said(spawn, "recover", copied(results), "--yes", "--kill")
    assert recovery.popen.returncode == 0, recovery.text()
    assert "asking" not in recovery.text()
    assert process.is_alive(original)


def test_the_record_of_the_original_beside_a_strangers_label_is_not_taken_for_its_run(
    spawn: Spawner, results: Path, original: process.ProcessId
) -> None:
    copy = copied(results)
    stranger = spawn("sleep", "600")
    (copy / "training.lock").write_text(f"{stranger.pid}\n")
    stop.stop(copy, StopPolicy(1.0))
    assert process.is_alive(original)
    assert label_of(results) == original.pid
