"""Saves beside the training: bits, order, phase, warnings; model, optimizer and disk are real, and the disk is slow."""

from __future__ import annotations

import errno
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kssm import tensorfile
from kssm.atomicfile import PrivateFile, largest_file, remedy
from kssm.checkpoint import BEST, checkpoint_path, load, save
from kssm.errors import CheckpointError, TooLarge
from kssm.place import Place
from kssm.report import Report
from kssm.saves import Saves
from kssm.snapshot import Snapshot, SnapshotFacts, TrainState, model_tensors, optimizer_tensors
from kssm.step import Stepper, allocate_state
from tests.trainer.test_loop import StandIn
from tests.trainer.test_step import CPU, batch, small_model, train_config

SOON = 60.0


class SlowDisk:
    """Lets no byte through before `writes` is set, none to the platter before `syncs` is; small blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.syncs = threading.Event(), threading.Event()
        self.asked = threading.Event()
        write, sync = PrivateFile.write, PrivateFile.sync

        def slow_write(file: PrivateFile, data: bytes | memoryview) -> None:
            self.asked.set()
            assert self.writes.wait(SOON)
            time.sleep(0.0005)  # an update that did not wait would come between two blocks
            write(file, data)

        def slow_sync(file: PrivateFile) -> None:
            assert self.syncs.wait(SOON)
            sync(file)

        monkeypatch.setattr(tensorfile, "_BLOCK", 256)
        monkeypatch.setattr(PrivateFile, "write", slow_write)
        monkeypatch.setattr(PrivateFile, "sync", slow_sync)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk(monkeypatch)
    yield slow
    slow.writes.set()
    slow.syncs.set()


class Scene:
    """A small training that saves into a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guard = StandIn(directory)
        self.lines: list[str] = []
        self.at = 0
        self.saves = Saves(
            self.guard, Report(self.lines.append, terminal=False), 3, lambda _owes_best: self.snapshot(self.at),
            disk_wait_s=0,
        )  # fmt: skip
        self.stepper = Stepper(small_model(), train_config(), CPU, batch, print, before_update=self.saves.release)
        allocate_state(self.stepper.optimizer)

    def snapshot(self, step: int) -> Snapshot:
        tensors = model_tensors(self.stepper.model)
        tensors |= optimizer_tensors(self.stepper.optimizer, self.stepper.model.named_parameters())
        return Snapshot(tensors, SnapshotFacts(TrainState(step, step), {}, {}, "c", "s", "run-1", ("run-1",), 8))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def phase(self) -> str:
        return self.guard.phases[-1]


def copied(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in snapshot.tensors.items()}


def equal(one: dict[str, Tensor], other: object) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)  # type: ignore[attr-defined,index]


def test_a_checkpoint_written_beside_a_step_holds_the_very_bits_of_its_own_step(disk: SlowDisk, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    disk.syncs.set()
    for step in range(3):
        scene.stepper.step(step)
    snapshot = scene.snapshot(3)
    before = copied(snapshot)
    scene.saves.begin(snapshot)
    computed: list[str] = []

    def release() -> None:  # not one byte is written before the next gradients are there
        computed.append("gradients")
        disk.writes.set()
        scene.saves.release()
        assert equal(before, snapshot.tensors), "the weights are the saved ones until they are read"

    scene.stepper._before_update = release
    scene.stepper.step(3)
    assert computed == ["gradients"]
    assert not equal(before, snapshot.tensors), "the step changed them"
    scene.saves.finish()
    found = load(checkpoint_path(tmp_path, 3)).snapshot
    assert equal(before, found.tensors)
    assert found.facts.state.step == 3


def test_steps_go_on_while_the_disk_is_waited_for_and_saved_is_told_only_after_it(
    disk: SlowDisk, tmp_path: Path
) -> None:
    scene = Scene(tmp_path)
    disk.writes.set()
    scene.stepper.step(0)
    before = copied(scene.snapshot(1))
    scene.saves.begin(scene.snapshot(1))
    for step in range(1, 4):
        scene.stepper.step(step)
        scene.saves.look()
    assert scene.guard.events == ["saving"]
    assert scene.phase() == "saving", "a stop must know that a save is under way"
    assert [name.startswith(".checkpoint_1.") for name in scene.names()] == [True]
    disk.syncs.set()
    scene.saves.settle()
    assert scene.guard.events == ["saving", "saved"]
    assert scene.phase() == "starting"
    assert scene.saves.saved == TrainState(1, 1)
    assert equal(before, load(checkpoint_path(tmp_path, 1)).snapshot.tensors)
    assert scene.lines[-1].startswith("saved checkpoint_1.safetensors at step 1 in ")
    assert "; training stood still for " in scene.lines[-1]


def test_two_saves_of_one_step_are_written_one_after_the_other(
    disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, at_once = Scene(tmp_path), list[int]()
    disk.writes.set()
    slow_sync = PrivateFile.sync

    def counting(file: PrivateFile) -> None:
        at_once.append(len(list(tmp_path.glob(".*.tmp"))))
        slow_sync(file)

    monkeypatch.setattr(PrivateFile, "sync", counting)
    scene.saves.begin(scene.snapshot(1), best=True)
    threading.Timer(0.05, disk.syncs.set).start()
    scene.saves.begin(scene.snapshot(1))
    assert scene.names()[-1] == BEST, "the second began after the first had its name"
    scene.saves.settle()
    assert at_once == [1, 1]
    assert scene.names() == [BEST, "checkpoint_1.safetensors"]
    assert scene.guard.events == ["saving", "saved"]


def faulty(_file: PrivateFile, _data: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_faulty_disk_beside_the_training_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, lost = Scene(tmp_path), list[str]()
    save(tmp_path, scene.snapshot(1))
    with monkeypatch.context() as filled:
        filled.setattr(PrivateFile, "write", faulty)
        scene.saves.begin(scene.snapshot(2), failed=lambda: lost.append("told"))
        scene.stepper.step(2)
        scene.saves.settle()
    assert scene.lines[-1].startswith(f"WARNING: cannot save {tmp_path}/checkpoint_2.safetensors: input/output")
    assert "training goes on (the disk reports a fault" in scene.lines[-1]
    assert scene.guard.events == ["saving", "save failed"]
    assert (lost, scene.saves.saved, scene.phase()) == (["told"], None, "starting")
    assert scene.names() == ["checkpoint_1.safetensors"]
    scene.saves.begin(scene.snapshot(3))
    scene.saves.finish()
    assert scene.saves.saved == TrainState(3, 3)


@pytest.mark.parametrize("where", ["write", "sync"])
def test_at_the_end_a_disk_that_refuses_is_an_error(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)

    def refuse(*_words: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(PrivateFile, where, refuse)
    scene.saves.begin(scene.snapshot(2))
    with pytest.raises(CheckpointError, match="input/output error"):
        scene.saves.finish()
    assert (scene.names(), scene.phase()) == ([], "starting")


def test_memory_that_runs_out_in_the_writer_is_its_own_trouble_not_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: object) -> None:
        raise MemoryError

    scene = Scene(tmp_path)
    monkeypatch.setattr(PrivateFile, "write", refuse)
    scene.saves.begin(scene.snapshot(1))
    scene.saves.settle()
    assert "out of memory; training goes on" in scene.lines[-1]


def test_an_error_of_the_training_sees_the_save_through(disk: SlowDisk, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    disk.writes.set()
    with pytest.raises(ValueError, match="the step's own"), scene.saves:
        scene.saves.begin(scene.snapshot(5))
        disk.syncs.set()
        raise ValueError("the step's own")
    assert scene.guard.events == ["saving", "saved"]
    assert load(checkpoint_path(tmp_path, 5)).snapshot.facts.state.step == 5


def test_who_leaves_at_once_waits_for_no_disk_and_leaves_nothing_half(disk: SlowDisk, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with pytest.raises(KeyboardInterrupt), scene.saves:
        scene.saves.begin(scene.snapshot(5))
        assert disk.asked.wait(SOON)
        disk.writes.set()
        raise KeyboardInterrupt
    assert scene.guard.events == ["saving"]
    assert (scene.names(), scene.phase()) == ([], "starting")


def test_a_directory_moved_away_beside_the_training_costs_that_save_and_harms_what_took_its_place(
    disk: SlowDisk, tmp_path: Path
) -> None:
    here, away = tmp_path / "run", tmp_path / "moved"
    here.mkdir()
    scene = Scene(here)
    scene.saves.begin(scene.snapshot(1))
    assert disk.asked.wait(SOON)
    here.rename(away)
    here.mkdir()
    theirs = checkpoint_path(here, 1)
    theirs.write_bytes(b"another run's")
    disk.writes.set()
    disk.syncs.set()
    scene.saves.settle()
    assert "no such file or directory" in scene.lines[-1]
    assert [path.name for path in here.iterdir()] == [theirs.name]
    assert theirs.read_bytes() == b"another run's"
    scene.guard.directory = away
    scene.saves.begin(scene.snapshot(1))
    scene.saves.finish()
    assert load(checkpoint_path(away, 1))


def test_only_the_newest_stay_and_what_lay_in_the_way_is_told_of(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    checkpoint_path(tmp_path, 4).write_bytes(b"torn")
    for step in (1, 2, 3, 4):
        scene.saves.begin(scene.snapshot(step))
    scene.saves.settle()
    assert scene.names() == [
        f"checkpoint_{step}.safetensors{end}" for step, end in ((2, ""), (3, ""), (4, ""), (4, ".torn-1"))
    ]
    assert any(line.startswith("moved checkpoint_4.safetensors aside") for line in scene.lines)
    assert scene.guard.events == ["saving", "saved"] * 4


def test_nothing_waits_where_nothing_is_saved(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for call in (scene.saves.release, scene.saves.look, scene.saves.settle, scene.saves.finish):
        call()
    assert (scene.lines, scene.guard.events, scene.names()) == ([], [], [])


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets how large a file of this process may become, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_larger_than_a_file_may_be_ends_the_run_and_the_older_one_stands(
    tmp_path: Path, limit: Callable[[int], None]
) -> None:
    scene = Scene(tmp_path)
    with scene.saves:
        scene.saves.require_size()
        scene.saves.begin(scene.snapshot(1))
        scene.saves.settle()
        size = checkpoint_path(tmp_path, 1).stat().st_size
        limit(size - 1)
        scene.saves.begin(scene.snapshot(2))
        with pytest.raises(TooLarge, match="file too large") as told:
            scene.saves.settle()
        assert f"raise the file size limit of {size - 1:,} bytes (ulimit -f)" in told.value.next_step
        assert not scene.saves.is_saving
    assert scene.names() == ["checkpoint_1.safetensors"]
    assert load(checkpoint_path(tmp_path, 1)).snapshot.facts.state.step == 1
    assert not any("training goes on" in line for line in scene.lines)


def test_a_limit_that_no_checkpoint_fits_is_known_before_anything_is_trained(
    tmp_path: Path, limit: Callable[[int], None]
) -> None:
    scene = Scene(tmp_path)
    limit(1000)
    with pytest.raises(TooLarge, match=r"a checkpoint takes .* MB and more, and a file may take 0\.0 MB"):
        scene.saves.require_size()


def test_a_file_system_that_takes_no_large_file_is_named_so() -> None:
    assert largest_file() is None
    assert remedy(OSError(errno.EFBIG, "x")) == "the file system takes no file of that size: choose another disk"


def test_a_pause_ends_when_there_is_room_although_no_file_may_hold_reserve_and_checkpoint_at_once(
    tmp_path: Path, limit: Callable[[int], None]
) -> None:
    place = Place(3)
    place.open(tmp_path)
    (tmp_path / "checkpoint").write_bytes(bytes(1 << 19))
    place.keep_reserve(tmp_path / "checkpoint", lambda: None, [])
    limit(1 << 20)  # the reserve fits, and so does a checkpoint
    assert place.has_room(1 << 19, lambda: None)
    place.close()
