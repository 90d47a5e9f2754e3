"""Every run ever, and how it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import process, registry
from solorun.cli.main import main
from solorun.history import fold, runs_of
from solorun.record import RunRecord, journal, write_record

from .stage import HOLDING, Spawner, as_nobody, run_record, wait_until

Tell = Callable[..., str]


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """What `solorun history` prints, run within this process from an empty directory."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def run(*words: str | Path, code: int = 0) -> str:
        capfd.readouterr()
        assert main(["history", *map(str, words)]) == code
        return capfd.readouterr().out

    return run


def ends(directory: Path) -> list[str]:
    return [past.outcome for past in runs_of(directory)]


def test_every_kind_of_end_is_told_newest_first(spawn: Spawner, results: Path) -> None:
    def start(line: str) -> None:
        spawn.solorun("start", results, "--", "sh", "-c", line).wait()

    start("true")
    start("echo error: no text; exit 3")
    start("kill -9 $$")
    start("kill -TERM $$")
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    assert spawn.solorun("stop", results).wait() == 0
    child.wait()
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    assert ends(results)[0] == "still running"
    child.signal(signal.SIGKILL)
    child.wait()
    told = ends(results)
    user = process.user_name(os.getuid())
    assert told == [
        "vanished: killed, and nothing was left that could say by what",
        f"interrupted by {user} (SIGTERM)",
        "interrupted (SIGTERM)",
        told[3],
        "crashed: exit status 3: error: no text",
        "completed",
    ]
    assert told[3].startswith("killed by SIGKILL")
    assert spawn.solorun("check", results).wait() == 0
    assert ends(results) == told  # that somebody found it dead changes nothing
    runs = runs_of(results)
    assert [past.record.parent_run_id for past in runs] == [past.record.run_id for past in runs[1:]] + [None]
    assert all(past.record.ended and past.record.ended >= past.record.started for past in runs)


def test_a_machine_that_was_restarted_is_told_as_power_loss(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    for name in ("run.json", "training.owner.json", "events.jsonl"):
        text = (results / name).read_text()
        (results / name).write_text(text.replace(process.here().boot, "00000000-before"))
    assert ends(results) == ["power loss: the machine was restarted while it ran"]
    assert spawn.solorun("start", results, "--", "true").wait() == 0
    assert ends(results) == ["completed", "power loss: the machine was restarted while it ran"]


def test_supervisor_and_trainer_both_killed_is_told_and_so_is_the_step(spawn: Spawner, results: Path) -> None:
    trainer = spawn.program("trainer.py", HOLDING)
    child = spawn.solorun("start", results, "--", sys.executable, trainer, results)
    child.wait_for("holding")
    wait_until(lambda: runs_of(results)[0].record.last_step)
    pid = run_record(results)["pid"]
    child.signal(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    child.wait()
    wait_until(lambda: ends(results)[0].startswith("vanished"))
    (past,) = runs_of(results)
    assert past.record.last_step
    assert past.record.total_steps == 1_000_000


def test_a_run_of_another_host_that_cannot_be_asked_is_not_called_dead(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    here = process.here()
    for name in ("run.json", "training.owner.json", "events.jsonl"):
        text = (results / name).read_text().replace(here.boot, "other").replace(json.dumps(here.machine), '"far/1"')
        (results / name).write_text(text.replace(f'"host": "{here.host}"', '"host": "far"'))
    assert ends(results) == ["still running"]


@pytest.mark.parametrize(
    "events",
    [
        [{"event": "started", "run_id": "r", "time": "soon", "pid": "x", "argv": 5, "user": None, "parent": {}}],
        [{"event": "ended", "run_id": "r", "time": None, "state": ["x"], "last_step": "7", "why": 3, "started": True}],
        [{"event": "found dead", "run_id": "r"}, {"event": "stop requested", "run_id": "r", "by": 5}],
        [{"event": "ended"}, {"event": "ended", "run_id": 5}, {"event": "started", "run_id": "r", "time": 1}],
    ],
)
def test_a_damaged_journal_is_no_surprise(events: list[dict[str, Any]]) -> None:
    (found,) = fold(events).values()
    assert isinstance(found, RunRecord)
    assert found.run_id == "r"


def test_a_stop_that_was_noted_after_the_end_still_counts() -> None:
    events = [
        {"event": "started", "run_id": "r", "time": 1.0},
        {"event": "ended", "run_id": "r", "time": 2.0, "state": "interrupted", "why": "SIGTERM"},
        {"event": "stop requested", "run_id": "r", "by": "ada", "signal": 15},
    ]
    assert fold(events)["r"].stopped_by == "ada"


def test_a_directory_without_a_journal_tells_its_last_run(fd: int, results: Path) -> None:
    write_record(fd, RunRecord("r", None, ("t",), "ada", "far", 1, 5.0, state="completed", ended=9.0))
    assert ends(results) == ["completed"]


def test_the_table_fits_80_columns_and_shortens_the_list(tell: Tell, fd: int, results: Path) -> None:
    assert tell().strip() == "no runs known"
    for n in range(25):
        journal(fd, f"20260101-0000{n:02}-aaaaaaaa", "started", 1_800_000_000.0 + n)
        why = "ValueError: " + "a very long reason " * 9
        facts = {"first_step": 1, "last_step": 300_000, "total_steps": 300_000, "why": why}
        journal(fd, f"20260101-0000{n:02}-aaaaaaaa", "ended", 1_800_100_000.0 + n, state="crashed", **facts)
    lines = tell(results).splitlines()
    assert lines[0].split() == ["STARTED", "LASTED", "STEPS", "HOW", "IT", "ENDED"]
    assert "crashed: ValueError: a very" in lines[1]
    assert max(map(len, lines)) <= 80 or all(str(results) in line for line in lines if len(line) > 80)
    assert lines[-1] == "... and 5 earlier: -n 0 shows all"
    assert tell(results, "-n", "0").count("crashed") == 25
    assert tell(results, "-n", "2").count("crashed") == 2
    assert len(json.loads(tell(results, "--json"))["runs"]) == 25


def test_one_run_is_shown_whole_with_its_last_words(tell: Tell, spawn: Spawner, results: Path) -> None:
    spawn.solorun("start", results, "--", sys.executable, "-c", "raise ValueError('nan\\x1b[31m')").wait()
    run_id = run_record(results)["run_id"]
    for words in ((results, run_id), (results, "--run", run_id), (run_id,)):
        text = tell(*words)
        assert f"run         {run_id}" in text
        assert "end         crashed: ValueError: nan" in text
        assert "  Traceback (most recent call last):" in text
        assert "\x1b" not in text
    assert "no run 20260101-000000-00000000 known" in tell(results, "20260101-000000-00000000", code=1)


def test_runs_of_a_directory_that_is_gone_are_remembered(tell: Tell, spawn: Spawner, results: Path) -> None:
    spawn.solorun("start", results, "--", "sh", "-c", "exit 3").wait()
    shutil.rmtree(results)
    for words in ((), (results,)):
        text = tell(*words)
        assert "crashed: exit status 3" in text
        assert "(gone)" in text
    assert json.loads(tell("--json"))["runs"][0]["vanished"] is True


def test_a_registry_that_was_lost_is_learned_again_from_the_journals(
    tell: Tell, spawn: Spawner, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "results" / "a"
    for _ in range(2):
        spawn.solorun("start", place, "--", "true").wait()
    before = registry.read(state).entries
    shutil.rmtree(state)
    monkeypatch.chdir(tmp_path)
    tell()
    again = registry.read(state).entries
    assert [replace(one, started=0, ended=0) for one in again] == [replace(one, started=0, ended=0) for one in before]
    assert [one.outcome for one in again] == ["completed", "completed"]
    (state / "runs.db").write_bytes(b"garbage" * 999)
    tell()
    assert len(registry.read(state).entries) == 2


def test_the_registry_is_not_written_where_it_is_of_a_newer_version(
    tell: Tell, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.mkdir()
    with sqlite3.connect(state / "runs.db") as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    (tmp_path / "results" / "a").mkdir(parents=True)
    (tmp_path / "results" / "a" / "training.log").touch()
    monkeypatch.chdir(tmp_path)
    before = (state / "runs.db").read_bytes()
    tell()
    assert (state / "runs.db").read_bytes() == before


def test_a_directory_that_may_not_be_read_is_not_called_one_without_runs(
    open_results: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    open_results.chmod(0o700)
    assert as_nobody(lambda: main(["history", str(open_results)])) == 0
    said = capfd.readouterr().err
    assert f"cannot look into '{open_results}': Permission denied" in said
    assert "next: ask its owner for permission" in said
