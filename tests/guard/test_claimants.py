"""Who works in a directory: trainers of every kind, and never a reader."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import process
from solorun.claimants import find, own_name, trains_into
from solorun.grouping import Marks, group, solorun_verb
from solorun.owner import Here, Owner, ProcessId, encode_owner
from solorun.process.table import Row, Seen

from .stage import HOLDING, Spawner, a_dead_pid, label_of, owner_of, wait_until

HERE = Here("studio", "m", "b", "n")
WRITING = """
    import sys, time
    with open(sys.argv[1], "a") as file:
        print("up", flush=True); time.sleep(600)
"""


def test_a_training_command_that_names_the_directory_is_told_from_everything_else(tmp_path: Path) -> None:
    place = str(tmp_path / "results" / "kssm_v3")
    cwd = str(tmp_path)
    into = (
        "python3 train.py results/kssm_v3", f"python3 -u pretrain_gpt.py --out {shlex.quote(place)}", "kssm train v3",
        "python3 train.py --output_dir=results/kssm_v3/", "python3 kssm/train_kssm_v3.py --resume",
        "torchrun --nproc 2 train.py results/kssm_v3", "python -m kssm train v3 --size tiny",
    )  # fmt: skip
    for line in into:
        assert trains_into(tuple(shlex.split(line)), cwd, place), line
    elsewhere = (
        "python3 train.py results/other", "tail -f results/kssm_v3/training.log", "python3 plot.py results/kssm_v3",
        "tensorboard --logdir results/kssm_v3", "kssm sample results/kssm_v3", "less results/kssm_v3/training.log",
        "python3 kssm/train_kssm_v3.py --output-dir results/other", "kssm train v2", "bash", "vim results/kssm_v3",
        "python3 kssm/train_kssm_v2_efficient.py", "python3 train.py --init-from results/kssm_v3 --out results/b",
        "python3 train.py --resume=results/kssm_v3 --out results/b",
    )  # fmt: skip
    for line in elsewhere:
        assert not trains_into(tuple(shlex.split(line)), cwd, place), line


def test_relative_words_count_from_the_process_own_directory_and_from_none_that_is_unknown(tmp_path: Path) -> None:
    place = str(tmp_path / "results" / "x")
    argv = ("python3", "train.py", "results/x")
    assert trains_into(argv, str(tmp_path), place)
    assert not trains_into(argv, "/", place)
    assert not trains_into(argv, "", place)


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("solorun logs -f results/x", "logs"),
        ("/usr/bin/python3 /home/a/.venv/bin/solorun start results/x -- python train.py", "start"),
        ("python3 -m solorun --version", "?"),
        ("python3 -u -m solorun recover results/x", "recover"),
        ("python3 train.py solorun", ""),
        ("python3 train.py", ""),
    ],
)
def test_a_verb_of_our_own_is_known(line: str, verb: str) -> None:
    assert solorun_verb(tuple(line.split())) == verb


def test_files_of_nested_runs_archives_and_editors_are_not_the_directorys_own(tmp_path: Path) -> None:
    (tmp_path / "nested" / "deep").mkdir(parents=True)
    (tmp_path / "nested" / "run.json").touch()
    (tmp_path / "shards").mkdir()
    place = str(tmp_path)
    for name in ("training.log", "shards/checkpoint_1.pt", ".checkpoint_5.tmp", ".checkpoint_5.tmp (deleted)"):
        assert own_name(f"{place}/{name}", place) == name
    for name in (
        "nested/training.log",
        "nested/deep/x.pt",
        "archive/q/training.log",
        ".training.log.swp",
        ".solorun.t",
    ):
        assert own_name(f"{place}/{name}", place) == ""


def seen(pid: int, parent: int, line: str = "python3 train.py", run_id: str = "") -> Seen:
    row = Row(pid, parent, pid * 10, 100.0 - pid, 0.0, 0, False, tuple(line.split()))
    return Seen(row, ProcessId(HERE, pid, pid * 10), "ada", "/", run_id, None)


WHY = Marks(("it has training.log open for writing",), ("training.log",))


def test_a_trainer_with_its_workers_and_its_guard_is_one_claimant() -> None:
    table = (
        seen(10, 1, "python3 -m solorun start r -- python3 train.py"), seen(11, 10, run_id="A"),
        seen(12, 11, run_id="A"), seen(13, 1, "worker", run_id="A"), seen(14, 12, "python3 helper.py"),
    )  # fmt: skip
    owner = Owner("A", table[1].process, table[0].process, True, "ada", (), "/", 0.0, "/r", 1)
    marks = {10: WHY, 11: WHY, 12: WHY, 13: WHY}
    (one,) = group(table, marks, owner, frozenset(), 1000.0)
    assert one.leader == table[1].process
    assert {member.pid for member in one.members} == {10, 11, 12, 13, 14}
    assert one.guards == {table[0].process}
    assert one.ask == ((table[1].process, signal.SIGTERM),)
    assert one.run_id == "A"


def test_two_trees_are_two_claimants_the_older_first_and_each_is_asked_at_its_root() -> None:
    table = (seen(20, 1), seen(21, 20), seen(10, 1), seen(11, 10), seen(12, 10, "bash"))
    found = group(table, {20: WHY, 21: WHY, 10: WHY, 11: WHY}, None, frozenset(), 1000.0)
    assert [[member.pid for member in one.members] for one in found] == [[10, 11, 12], [20, 21]]
    assert [one.ask for one in found] == [
        ((table[2].process, signal.SIGINT),), ((table[0].process, signal.SIGINT),),
    ]  # fmt: skip


def test_an_unadopted_command_is_asked_through_its_guard_and_a_deaf_trainer_by_sigterm() -> None:
    table = (seen(10, 1, "solorun start r -- train"), seen(11, 10, "train", "A"))
    owner = Owner("A", table[1].process, table[0].process, False, "ada", (), "/", 0.0, "/r", 1)
    (one,) = group(table, {10: WHY, 11: WHY}, owner, frozenset(), 0.0)
    assert one.ask == ((table[0].process, signal.SIGINT),)
    (one,) = group((seen(5, 1),), {5: replace(WHY, hears=signal.SIGTERM)}, None, frozenset(), 0.0)
    assert one.ask[0][1] == signal.SIGTERM


def test_a_tee_behind_a_trainer_belongs_to_it_and_is_not_asked() -> None:
    table = (seen(9, 1, "bash run.sh"), seen(10, 9), seen(11, 9, "tee -a r/training.log"))
    (one,) = group(table, {10: WHY, 11: WHY}, None, frozenset(), 0.0)
    assert [member.pid for member in one.members] == [10, 11]
    assert [whom.pid for whom, _ in one.ask] == [10]


def test_a_guarded_run_that_a_claimant_started_elsewhere_is_not_its_own() -> None:
    table = (seen(10, 1, run_id="A"), seen(11, 10, run_id="B"), seen(12, 11, run_id="B"))
    (one,) = group(table, {10: WHY}, None, frozenset(), 0.0)
    assert [member.pid for member in one.members] == [10]


def test_what_one_dead_trainer_left_is_one_claimant() -> None:
    table = (seen(11, 1), seen(12, 1), seen(20, 1))
    found = group(table, {11: WHY, 12: WHY, 20: WHY}, None, frozenset(), 0.0, frozenset({11, 12}))
    assert {(tuple(member.pid for member in one.members), one.left) for one in found} == {
        ((11, 12), True),
        ((20,), False),
    }


def test_the_callers_own_processes_are_nobodys() -> None:
    assert group((seen(10, 1), seen(11, 10)), {10: WHY, 11: WHY}, None, frozenset({10, 11}), 0.0) == ()


def test_only_the_label_ties_a_stranger_loosely(spawn: Spawner, results: Path) -> None:
    stranger = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    stranger.wait_for("up")
    (results / "training.lock").write_text(f"{stranger.pid}\n")
    (one,) = find(results, time.time())
    assert (one.leader.pid, one.tied) == (stranger.pid, False)


def test_a_live_run_of_ours_is_one_claimant_with_its_evidence(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    (one,) = find(results, time.time())
    assert one.leader.pid == child.pid
    assert one.tied
    assert one.ask[0][1] == signal.SIGTERM
    assert any("training.owner.json names it" in clause for clause in one.evidence)
    assert "progress" in one.files


def test_a_guarded_command_with_its_guard_is_one_claimant(spawn: Spawner, results: Path) -> None:
    guard = spawn.solorun("start", results, "--", "sleep", "600")
    wait_until(lambda: process.argv(label_of(results)) == ("sleep", "600"))  # it has left its gate
    (one,) = find(results, time.time())
    assert process.identify(guard.pid) in one.guards
    assert len(one.members) == 2


def test_a_writer_counts_and_a_reader_a_shell_and_an_editor_do_not(spawn: Spawner, results: Path) -> None:
    log = results / "training.log"
    log.touch()
    writer = spawn.python(WRITING, log)
    writer.wait_for("up")
    spawn("tail", "-f", str(log))
    spawn("sleep", "600", cwd=results)
    spawn.solorun("logs", "-f", results)
    editor = spawn.python(WRITING, results / ".training.log.swp")
    editor.wait_for("up")
    reader = spawn.python("import sys,time; f=open(sys.argv[1]); print('up', flush=True); time.sleep(600)", log)
    reader.wait_for("up")
    (one,) = find(results, time.time())
    assert one.leader.pid == writer.pid
    assert one.files == ("training.log",)


def test_a_recycled_label_and_a_record_of_a_copy_name_nobody(spawn: Spawner, results: Path) -> None:
    label = results / "training.lock"
    stranger = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    stranger.wait_for("up")
    label.write_text(f"{stranger.pid}\n")
    os.utime(label, (1.0, 1.0))
    assert find(results, time.time()) == ()
    identity = process.identify(stranger.pid)
    assert identity is not None
    other = results.parent / "other"
    other.mkdir()
    record = owner_of(other, identity)
    (results / "training.owner.json").write_bytes(encode_owner(record))
    assert find(results, time.time()) == ()


def test_daemons_and_couriers_that_a_guard_has_adopted_are_not_of_its_run() -> None:
    table = (
        seen(10, 1, "python3 -m solorun start r -- python3 train.py"), seen(11, 10, run_id="A"),
        seen(12, 10, "tmux new-session"), seen(13, 10, "python3 -c courier"), seen(14, 11, "python3 helper.py"),
    )  # fmt: skip
    (one,) = group(table, {10: WHY, 11: WHY}, None, frozenset(), 0.0)
    assert [member.pid for member in one.members] == [10, 11, 14]


LOOKING = """
import sys, time
from solorun import lock
held = lock.seize(sys.argv[2])
print("seized", flush=True)
time.sleep(600)
"""


def test_a_start_that_looks_whether_it_is_its_turn_is_no_claimant(spawn: Spawner, results: Path) -> None:
    looking = spawn(sys.executable, spawn.program("solorun", LOOKING), "start", results)
    looking.wait_for("seized")
    assert find(results, time.time()) == ()


def test_a_guard_whose_run_is_over_is_no_claimant_unless_it_is_suspended(spawn: Spawner, results: Path) -> None:
    letting_go = spawn(sys.executable, spawn.program("solorun", LOOKING), "start", results)
    letting_go.wait_for("seized")
    dead = ProcessId(process.here(), a_dead_pid(), 1)
    owner = owner_of(results, dead, supervisor=process.identify(letting_go.pid))
    (results / "training.owner.json").write_bytes(encode_owner(owner))
    assert find(results, time.time()) == ()
    letting_go.signal(signal.SIGSTOP)
    wait_until(lambda: letting_go.state() == "T")
    (one,) = find(results, time.time())
    assert one.leader.pid == letting_go.pid
