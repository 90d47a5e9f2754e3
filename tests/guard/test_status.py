"""Evidence on results directories, gathered without changing anything."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import process, status
from solorun.owner import encode_owner
from solorun.record import RunRecord, ended, write_record
from solorun.runstate import Evidence, Unreadable, classify
from solorun.settings import Settings

from .stage import HOLDING, Spawner, a_dead_pid, as_nobody, label_of, owner_of, snapshot, wait_until

SETTINGS = Settings()


def row(directory: Path) -> dict[str, Any]:
    """What `solorun status` tells of one directory."""
    ((path, state, evidence),) = status.survey([directory], time.time(), SETTINGS)
    return status.as_row(path, state, evidence, time.time())


def test_a_running_trainer_is_told_with_its_facts(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    wait_until(lambda: row(results)["rate"])
    found = row(results)
    assert (found["state"], found["pid"], found["phase"]) == ("running", child.pid, "training")
    assert found["step"] > 0
    assert found["total"] == 1_000_000
    assert found["user"] == process.user_name(os.getuid())
    assert found["eta_s"] > 0
    assert found["memory_bytes"] > 1_000_000
    assert found["command"][-1] == str(results)
    assert found["ended"] is None
    child.signal(signal.SIGINT)
    child.wait()
    found = row(results)
    assert (found["state"], found["ended"], found["pid"]) == ("idle", "interrupted", None)
    assert (found["rate"], found["eta_s"], found["phase"]) == (None, None, None)


def test_the_newest_checkpoint_is_told_with_its_age(spawn: Spawner, results: Path) -> None:
    (results / "training.log").touch()
    assert (row(results)["checkpoint"], row(results)["checkpoint_age_s"]) == (None, None)
    for step, age in ((900, 50), (1000, 100), (1100, 0)):
        path = results / f"checkpoint_{step}.safetensors"
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    (results / "checkpoint_1100.safetensors").rename(results / "checkpoint_1100.safetensors.torn-1")
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    found = row(results)
    assert found["checkpoint"] == 1000
    assert 100 <= found["checkpoint_age_s"] < 160


def test_one_look_at_the_process_table_serves_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    pids = process.system.pids
    monkeypatch.setattr(process.system, "pids", lambda: looks.append(1) or pids())
    for n in range(20):
        path = tmp_path / f"r{n}"
        path.mkdir()
        dead = replace(process.identify_self(), pid=a_dead_pid())
        (path / "training.owner.json").write_bytes(encode_owner(owner_of(path, dead, f"run-{n}")))
    assert len(status.survey([tmp_path], time.time(), SETTINGS)) == 20
    assert len(looks) == 1


def test_a_killed_trainer_is_stale_and_was_lost(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    found = row(results)
    assert (found["state"], found["ended"]) == ("stale", "lost")
    assert found["detail"] == f"PID {child.pid} is dead"


def test_a_suspended_trainer_is_hung(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    assert row(results)["state"] == "hung"


def test_an_old_style_trainer_is_told_by_the_process_table(spawn: Spawner, results: Path) -> None:
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", "old-style")
    child.wait_for("up")
    (results / "training.lock").write_text(f"{child.pid}\n")
    found = row(results)
    assert (found["state"], found["pid"], found["run_id"]) == ("running", child.pid, "")
    assert found["command"][-1] == "old-style"


def test_an_old_style_trainer_beside_a_dead_runs_record_is_the_one_that_is_told(spawn: Spawner, results: Path) -> None:
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead)))
    (results / "training.lock").write_text(f"{child.pid}\n")
    assert (row(results)["state"], row(results)["pid"]) == ("running", child.pid)


def test_two_live_claimants_are_a_contest(spawn: Spawner, results: Path) -> None:
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    child.wait_for("up")
    me = process.identify_self()
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, me)))
    (results / "training.lock").write_text(f"{child.pid}\n")
    found = row(results)
    assert found["state"] == "contested"
    assert found["detail"] == f"PIDs {me.pid} and {child.pid} both claim it"


def test_survivors_of_a_killed_run_are_an_orphaned_state(spawn: Spawner, results: Path) -> None:
    run_id = f"run-{spawn.mark}"
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run_id})
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead, run_id)))
    found = row(results)
    assert found["state"] == "orphaned"
    assert str(child.pid) in found["detail"]


def test_a_copy_of_a_live_directory_is_stale_and_not_contested(results: Path) -> None:
    import shutil

    me = process.identify_self()
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, me)))
    (results / "training.lock").write_text(f"{me.pid}\n")
    copy = results.with_name("copy")
    shutil.copytree(results, copy)
    assert row(copy)["state"] == "stale"
    (copy / "training.lock").write_text(f"{os.getppid()}\n")
    assert (row(copy)["state"], row(copy)["pid"]) == ("running", os.getppid())


def test_looking_changes_nothing(results: Path) -> None:
    (results / "training.lock").write_text("garbage")
    (results / "training.log").write_text("line\n")
    before = snapshot(results)
    row(results)
    assert snapshot(results) == before


@pytest.mark.parametrize(
    "name",
    ["two words", "it's", 'a "quote"', "new\nline", "-rf", "tab\t", "字", "\udcff\udcfe", "$(touch x)", "x" * 200],
)
def test_directories_with_odd_names_are_found_and_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    (path / "training.lock").write_text(f"{os.getpid()}\n")
    found = row(tmp_path)
    assert (found["directory"], found["state"]) == (str(path), "running")
    json.dumps(found)


def test_a_directory_that_may_not_be_read_is_told_and_does_not_hide_its_neighbours(open_results: Path) -> None:
    private = open_results / "private"
    private.mkdir(mode=0o700)
    (private / "training.lock").write_text("1\n")
    other = open_results / "public"
    other.mkdir()
    (other / "training.log").write_text("line\n")
    other.chmod(0o755)
    answer = as_nobody(
        lambda: [
            isinstance(status.gather(private, 0.0), Unreadable),
            [str(path) for path, _, _ in status.survey([open_results], 0.0, SETTINGS)],
            [type(state).__name__ for _, state, _ in status.survey([private], 0.0, SETTINGS)],
        ]
    )
    assert answer == [True, [str(other)], ["Unreadable"]]


def test_a_missing_root_and_a_file_are_told_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert row(tmp_path / "nowhere")["detail"] == "No such file or directory"
    assert row(tmp_path / "file")["detail"] == "Not a directory"


def test_a_survey_finds_nested_directories_once_sorted_and_enters_no_archive(tmp_path: Path) -> None:
    for name in ("b/deep/er", "a", "b", "a/archive/old", ".hidden"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = [os.path.relpath(path, tmp_path) for path, _, _ in status.survey([tmp_path, tmp_path], 0.0, SETTINGS)]
    assert found == ["a", "b", "b/deep/er"]


def test_an_empty_directory_is_no_results_directory(tmp_path: Path) -> None:
    assert status.survey([tmp_path], 0.0, SETTINGS) == []


def test_an_earlier_runs_heartbeat_is_not_told_as_this_ones(fd: int, results: Path) -> None:
    from solorun.progress import Heartbeat

    beat = Heartbeat(fd, "earlier")
    beat.claim()
    beat.advance(99, 100)
    beat.close()
    record = RunRecord("later", "earlier", ("t",), "ada", "studio", 1, time.time())
    write_record(fd, ended(record, "crashed", time.time(), exit_code=1, signal=None, why="x"))
    found = row(results)
    assert (found["step"], found["ended"]) == (None, "crashed")


def test_a_damaged_directory_is_told_and_never_an_exception(results: Path) -> None:
    for name in ("training.owner.json", "run.json", "progress", "events.jsonl", "training.log"):
        (results / name).write_bytes(b"\xff\x00garbage" * 100)
    (results / "training.lock").write_bytes(b"\xff")
    evidence = status.gather(results, time.time())
    assert isinstance(evidence, Evidence)
    assert row(results)["state"] == "stale"
    assert label_of(results) == 0
    classify(evidence, time.time(), SETTINGS)
