"""What to look at before a start."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import solorun
from solorun import preflight, process
from solorun.owner import encode_owner
from solorun.preflight import Safe, Unsafe
from solorun.runstate import Left, Orphaned, Running, Unreadable
from solorun.settings import Settings

from .stage import HOLDING, Spawner, a_dead_pid, as_nobody, events, label_of, names, owner_of, snapshot


def check(directory: Path) -> preflight.Finding:
    (found,) = preflight.check([directory], time.time(), Settings())
    return found


def test_a_directory_that_is_not_there_yet_or_empty_or_idle_is_safe(results: Path) -> None:
    assert check(results / "new") == Safe(results / "new", "")
    assert check(results) == Safe(results, "")
    (results / "training.log").write_text("line\n")
    assert check(results) == Safe(results, "")


def test_a_stale_lock_is_cleared_and_told(results: Path) -> None:
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    assert check(results) == Safe(results, f"PID {dead} is dead")
    assert names(results) == {"events.jsonl"}
    assert events(results) == ["cleared stale lock"]
    assert check(results) == Safe(results, "")


def test_a_live_run_is_not_safe_and_untouched(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    before = {name: facts for name, facts in snapshot(results).items() if name != "progress"}
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Running)
    assert found.row["pid"] == child.pid
    assert {name: facts for name, facts in snapshot(results).items() if name != "progress"} == before


def test_an_old_style_run_is_not_safe_and_untouched(results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    assert isinstance(check(results), Unsafe)
    assert label_of(results) == os.getpid()


def test_survivors_are_not_safe_and_the_lock_stays(spawn: Spawner, results: Path) -> None:
    run_id = f"run-{spawn.mark}"
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run_id})
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead, run_id)))
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Orphaned)
    assert names(results) == {"training.owner.json"}


def test_what_a_well_ended_run_left_behind_is_not_safe_either(spawn: Spawner, results: Path) -> None:
    with solorun.hold(results) as run:
        child = spawn.python(
            "import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run.run_id}
        )
        child.wait_for("up")
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Orphaned)


def test_another_hosts_run_is_not_safe_and_untouched(results: Path) -> None:
    me = process.identify_self()
    there = replace(me, here=replace(me.here, boot="b", machine="m", host="far"))
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, there)))
    found = check(results)
    assert isinstance(found, Unsafe)
    assert found.row["state"] == "foreign"
    assert names(results) == {"training.owner.json"}


def test_without_the_right_to_write_a_stale_lock_stands_and_is_not_safe(open_results: Path) -> None:
    open_results.chmod(0o755)
    (open_results / "training.lock").write_text(f"{a_dead_pid()}\n")
    answer = as_nobody(lambda: isinstance(found := check(open_results), Unsafe) and isinstance(found.state, Left))
    assert answer is True
    assert names(open_results) == {"training.lock"}


def test_what_cannot_be_looked_at_is_not_safe(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "dangling"):
        found = check(tmp_path / name)
        assert isinstance(found, Unsafe)
        assert isinstance(found.state, Unreadable)
