"""Checkpoints: whole or not at all, newest valid one first, never another run's, whatever happens to a save."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kssm.atomicfile import replacing
from kssm.checkpoint import BEST, Loaded, checkpoint_path, load, newest_valid, prune, read_facts, save
from kssm.errors import CheckpointError
from kssm.snapshot import Snapshot, SnapshotFacts, TrainState
from kssm.tensorfile import Damaged


def snapshot(
    step: int, run: str = "run-2", lineage: tuple[str, ...] = ("run-1", "run-2"), size: int = 1000
) -> Snapshot:
    facts = SnapshotFacts(TrainState(step, step * 64), {}, {}, "corpus", "plays", run, lineage, 8)
    generator = torch.Generator().manual_seed(step)
    return Snapshot({"model.w": torch.randn(size, generator=generator), "model.b": torch.ones(3)}, facts)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest(directory: Path) -> tuple[Loaded | None, list[str]]:
    said: list[str] = []
    return newest_valid(directory, said.append), said


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = save(tmp_path, snapshot(7))
    assert saved.path == tmp_path / "checkpoint_7.safetensors"
    assert (saved.step, saved.seconds > 0) == (7, True)
    loaded = load(saved.path)
    assert loaded.digest == saved.digest
    assert loaded.snapshot.facts == snapshot(7).facts == read_facts(saved.path)
    assert torch.equal(loaded.snapshot.tensors["model.w"], snapshot(7).tensors["model.w"])
    assert names(tmp_path) == ["checkpoint_7.safetensors"]


def test_the_best_model_has_its_own_name_and_is_replaced(tmp_path: Path) -> None:
    for step in (3, 9):
        save(tmp_path, snapshot(step), best=True)
    assert names(tmp_path) == [BEST]
    assert read_facts(tmp_path / BEST).state.step == 9


def test_equal_snapshots_have_equal_digests(tmp_path: Path) -> None:
    digests = {save(tmp_path, snapshot(step)).digest for step in (1, 1, 2)}
    assert len(digests) == 2


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        save(tmp_path, snapshot(step))
    found, said = newest(tmp_path)
    assert found
    assert found.snapshot.facts.state.step == 1000
    assert said == []


def test_an_empty_or_missing_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "gone") == (None, [])


def test_torn_foreign_and_renamed_files_are_named_and_passed_over(tmp_path: Path) -> None:
    save(tmp_path, snapshot(10))
    torn = save(tmp_path, snapshot(40)).path
    torn.write_bytes(torn.read_bytes()[:-1])
    flipped = save(tmp_path, snapshot(30)).path
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    checkpoint_path(tmp_path, 20).write_bytes(checkpoint_path(tmp_path, 10).read_bytes())
    (tmp_path / "checkpoint_99.pt").write_bytes(b"pickle")
    (tmp_path / "checkpoint_007.safetensors").write_bytes(b"odd")
    found, said = newest(tmp_path)
    assert found
    assert found.snapshot.facts.state.step == 10
    for line, part in zip(said, ("_007.", "_99.pt", "_40.", "_30.", "_20."), strict=True):
        assert line.startswith("passed over checkpoint")
        assert part in line
    assert "it is of step 10" in said[-1]
    assert len(names(tmp_path)) == 6, "nothing is deleted by looking"


def test_what_a_dead_writer_left_is_cleared_and_a_live_writers_file_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".checkpoint_5.safetensors.4242-0123abcd.tmp"
    dead.write_bytes(b"half")
    theirs = tmp_path / ".checkpoint_5.pt.tmp"
    theirs.write_bytes(b"another program's")
    with replacing(checkpoint_path(tmp_path, 6)) as live:
        _, said = newest(tmp_path)
        assert live.path.exists()
    assert said == [f"cleared {dead.name}, left by a save that was killed"]
    assert theirs.exists()


def test_a_sound_checkpoint_that_cannot_be_read_is_no_reason_to_take_an_older_one(tmp_path: Path) -> None:
    save(tmp_path, snapshot(1))
    checkpoint_path(tmp_path, 2).mkdir()
    with pytest.raises(CheckpointError, match="cannot read"):
        newest(tmp_path)


def test_pruning_keeps_the_newest_the_best_and_everything_that_is_not_ours(tmp_path: Path) -> None:
    for step in (100, 200, 300, 1000):
        save(tmp_path, snapshot(step))
    save(tmp_path, snapshot(150, run="run-1", lineage=("run-1",)))
    save(tmp_path, snapshot(50, run="other", lineage=("other",)))
    save(tmp_path, snapshot(100), best=True)
    torn = save(tmp_path, snapshot(2000)).path
    torn.write_bytes(torn.read_bytes()[:-1])
    (tmp_path / "checkpoint_1.pt").write_bytes(b"pickle")
    gone = prune(tmp_path, 2, {"run-1", "run-2"}, 1_000)
    assert [path.name for path in gone] == [f"checkpoint_{step}.safetensors" for step in (200, 150, 100)]
    kept = [f"checkpoint_{name}" for name in ("1.pt", "1000.safetensors", "2000.safetensors", "300.safetensors")]
    assert names(tmp_path) == [BEST, *kept[:3], kept[3], "checkpoint_50.safetensors"]
    assert prune(tmp_path, 0, {"run-1", "run-2"}, 1_000) == [checkpoint_path(tmp_path, 300)], "one always stays"


def test_damaged_files_of_later_steps_never_push_out_what_was_just_saved(tmp_path: Path) -> None:
    for step in (300, 400, 500):
        save(tmp_path, snapshot(step))
    damaged = checkpoint_path(tmp_path, 500)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1  # its header still tells that it is ours
    damaged.write_bytes(data)
    save(tmp_path, snapshot(450))
    prune(tmp_path, 1, {"run-1", "run-2"}, 450)
    found = newest_valid(tmp_path, lambda _line: None)
    assert found is not None
    assert found.path == checkpoint_path(tmp_path, 450)


def test_a_run_replaces_its_own_checkpoint_and_that_of_the_run_it_continues(tmp_path: Path) -> None:
    said: list[str] = []
    save(tmp_path, snapshot(5, run="run-1", lineage=("run-1",)))
    for _ in range(2):
        save(tmp_path, snapshot(5), report=said.append)
    assert read_facts(checkpoint_path(tmp_path, 5)).run_id == "run-2"
    assert (names(tmp_path), said) == (["checkpoint_5.safetensors"], [])


@pytest.mark.parametrize("best", [False, True])
def test_another_runs_file_is_moved_aside_not_overwritten(tmp_path: Path, best: bool) -> None:
    said: list[str] = []
    for run in ("other", "other", "../../etc/x"):
        path = save(tmp_path, snapshot(5, run=run, lineage=(run,)), best=best, report=said.append).path
        theirs = path.read_bytes()
        save(tmp_path, snapshot(5), best=best, report=said.append)
        assert theirs in [file.read_bytes() for file in tmp_path.iterdir()]
    aside = [name for name in names(tmp_path) if ".foreign-" in name]
    assert len(aside) == len(said) == 5
    assert f"{path.name}.foreign-other" in aside
    assert f"{path.name}.foreign-------etc-x" in aside


def test_a_torn_file_is_moved_aside_not_overwritten(tmp_path: Path) -> None:
    said: list[str] = []
    for content in (b"torn", b"torn again"):
        checkpoint_path(tmp_path, 5).write_bytes(content)
        save(tmp_path, snapshot(5), report=said.append)
    assert (tmp_path / "checkpoint_5.safetensors.torn-1").read_bytes() == b"torn"
    assert (tmp_path / "checkpoint_5.safetensors.torn-2").read_bytes() == b"torn again"
    assert said[0].startswith("moved checkpoint_5.safetensors aside as checkpoint_5.safetensors.torn-1")
    assert load(checkpoint_path(tmp_path, 5))


def test_a_vanished_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save .*checkpoint_1") as caught:
        save(tmp_path / "gone", snapshot(1))
    assert caught.value.next_step
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_directory_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="permission denied"):
            save(tmp_path, snapshot(1))
    finally:
        tmp_path.chmod(0o700)


def test_facts_of_the_wrong_kind_are_damage(tmp_path: Path) -> None:
    facts = replace(snapshot(3).facts, lineage=("run-2",), micro_batch=-1)
    path = save(tmp_path, Snapshot({}, facts)).path
    with pytest.raises(Damaged, match="micro_batch is -1"):
        load(path)
