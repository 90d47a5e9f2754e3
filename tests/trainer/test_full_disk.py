"""A full disk pauses a run: what is saved first, who waits for what, what a stop and a limit do. The loop is real."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kssm import checkpoint as checkpoint_room
from kssm import pause as pause_room
from kssm import place as place_room
from kssm.atomicfile import PrivateFile
from kssm.checkpoint import BEST, load, newest_valid
from kssm.errors import CheckpointError, NoRoom, StepFailed
from kssm.pause import PHASE, is_due
from kssm.report import Report
from kssm.reserve import NAME, Reserve
from kssm.step import Stepper, StepResult
from kssm.train import Result, train
from kssm.wishes import Wishes
from tests.trainer.test_loop import QUICK, StandIn, _denormals, text

__all__ = ["_denormals", "text"]  # fixtures


class FullDisk:
    """A disk without room for some attempts to save, counted from the first save of a run.

    Args:
        refused: numbers of the attempts that find no room; 1 is the first.
        number: ENOSPC, which a look at the disk shows, or EDQUOT, which nothing shows.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: range, number: int = errno.ENOSPC) -> None:
        self.attempts, self.refused, self.number = 0, refused, number
        self.during: Callable[[], None] = lambda: None
        real = checkpoint_room.save

        def save(*words: Any, **names: Any) -> Any:
            self.attempts += 1
            if self.attempts in self.refused:
                self.during()
                raise NoRoom(f"cannot save: {os.strerror(self.number).lower()}", "free space")
            return real(*words, **names)

        monkeypatch.setattr(checkpoint_room, "save", save)
        shown = property(
            lambda _reserve: 0 if self.number == errno.ENOSPC and self.attempts in self.refused else 1 << 40
        )
        monkeypatch.setattr(Reserve, "room", shown)
        for name, value in (("_LOOK_S", 0.001), ("_SOON_S", 0.002), ("_RARELY_S", 0.01)):
            monkeypatch.setattr(pause_room, name, value)


def run(guard: StandIn, text: Path, cache: Path, wait_s: float = 60.0, **said: Any) -> tuple[Result, list[str]]:
    lines: list[str] = []
    wishes = Wishes(
        "v3", "tiny", training={**QUICK, **said}, text=text, vocabulary="bytes", device="cpu", disk_wait_s=wait_s
    )
    return train(wishes, cache, guard, Report(lines.append, terminal=False)), lines


@pytest.fixture(scope="module")
def unbroken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that always had room."""
    place = tmp_path_factory.mktemp("unbroken")
    guard = StandIn(place / "run")
    guard.directory.mkdir()
    assert run(guard, text, place / "cache")[0].complete
    return place


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("first", "times", "number"),
    [(1, 1, errno.ENOSPC), (4, 1, errno.ENOSPC), *((n, 3, errno.ENOSPC) for n in range(1, 6)), (1, 3, errno.EDQUOT)],
)
def test_a_run_that_paused_at_any_of_its_saves_leaves_the_very_bytes_of_one_that_did_not(
    first: int, times: int, number: int, text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, range(first, first + times), number)
    guard = StandIn(tmp_path)
    result, lines = run(guard, text, unbroken / "cache")
    assert result.complete
    assert disk.attempts > first
    # A pause may save one more step, which then counts among those that are kept.
    left, meant = files(tmp_path), files(unbroken / "run")
    assert {name: left[name] for name in (BEST, "checkpoint_6.safetensors")} == {
        name: meant[name] for name in (BEST, "checkpoint_6.safetensors")
    }
    assert all(left[name] == meant[name] for name in left.keys() & meant.keys())
    assert guard.steps == [1, 2, 3, 4, 5, 6]
    assert "save failed" in guard.events
    assert ("paused" in guard.events) == (PHASE in guard.phases)
    if times > 1:
        assert PHASE in guard.phases
        assert any(line.startswith("PAUSED: ") for line in lines)
        assert any(line.startswith("there is room again after") for line in lines)
    assert NAME not in left


def test_a_disk_that_turns_out_full_when_a_save_is_made_durable_has_the_state_of_now_saved(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = PrivateFile.sync, list[str]()

    def sync(file: PrivateFile) -> None:
        calls.append(file.path.name)
        if len(calls) == 1:  # by then the training has gone on
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(PrivateFile, "sync", sync)
    guard = StandIn(tmp_path)
    assert run(guard, text, unbroken / "cache")[0].complete
    assert guard.events[:4] == ["begun", "saving", "save failed", "saving"]
    left, meant = files(tmp_path), files(unbroken / "run")
    assert left["checkpoint_6.safetensors"] == meant["checkpoint_6.safetensors"]
    assert left[BEST] == meant[BEST]


def stops_while_paused(guard: StandIn) -> None:
    """Asks for a stop at the first look of a pause."""
    monkey = type("Stopping", (StandIn,), {"should_stop": property(lambda self: self.phases[-1] == PHASE)})
    guard.__class__ = monkey


def test_a_stop_while_paused_is_answered_at_once_and_loses_nothing(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as filled:
        FullDisk(filled, range(1, 2))
        filled.setattr(Reserve, "room", property(lambda _reserve: 0))
        guard = StandIn(tmp_path)
        stops_while_paused(guard)
        result, lines = run(guard, text, unbroken / "cache")
    assert not result.complete
    assert guard.steps == [1, 2], "the step that was under way is not made"
    assert "the state at step 2 is already saved in checkpoint_2.safetensors" in lines
    assert load(tmp_path / "checkpoint_2.safetensors").snapshot.facts.state.step == 2
    assert run(StandIn(tmp_path, "run-2"), text, unbroken / "cache")[0].complete
    assert same_bits(tmp_path / "checkpoint_6.safetensors", unbroken / "run" / "checkpoint_6.safetensors")
    assert same_bits(tmp_path / BEST, unbroken / "run" / BEST)


def same_bits(one: Path, other: Path) -> bool:
    a, b = (load(path).snapshot for path in (one, other))
    same = a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
    return same and a.facts.state == b.facts.state


def test_a_stop_while_the_last_best_model_waits_for_room_leaves_that_evaluation_to_the_next_run(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saves of a run: 2, best 3, 4, best 6, 6. The fourth finds no room; then the state goes first.
    with monkeypatch.context() as filled:
        disk = FullDisk(filled, range(4, 5))
        real_during = checkpoint_room.save

        def only_states(*words: Any, best: bool = False, **names: Any) -> Any:
            if best and disk.attempts >= 4:
                raise NoRoom("cannot save: no space left on device", "free space")
            return real_during(*words, best=best, **names)

        filled.setattr(checkpoint_room, "save", only_states)
        guard = StandIn(tmp_path)
        stops_while_paused(guard)
        result, lines = run(guard, text, unbroken / "cache")
    assert not result.complete, "its best model is missing"
    assert guard.steps[-1] == 6
    assert any(line.startswith("TRAINING INTERRUPTED") for line in lines)
    assert load(tmp_path / "checkpoint_6.safetensors").snapshot.facts.state.evaluated_step == 3
    assert run(StandIn(tmp_path, "run-2"), text, unbroken / "cache")[0].complete
    assert same_bits(tmp_path / "checkpoint_6.safetensors", unbroken / "run" / "checkpoint_6.safetensors")
    assert same_bits(tmp_path / BEST, unbroken / "run" / BEST)


def best_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for each state, and for no best model."""
    FullDisk(monkeypatch, range(0))
    real = checkpoint_room.save

    def save(*words: Any, best: bool = False, **names: Any) -> Any:
        if best:
            raise NoRoom("cannot save: no space left on device", "free space")
        return real(*words, best=best, **names)

    monkeypatch.setattr(checkpoint_room, "save", save)


class StopsForGood(StandIn):
    """Asks for a stop from the first look of a pause on, as a signal does."""

    @property
    def should_stop(self) -> bool:
        return PHASE in self.phases


def test_a_stop_while_a_best_model_in_mid_run_waits_for_room_is_answered_and_its_evaluation_made_up_for(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = StopsForGood(tmp_path)
    with monkeypatch.context() as filled:
        best_finds_no_room(filled)
        result, lines = run(guard, text, unbroken / "cache", 2.0)
    assert not result.complete
    assert (guard.events.count("paused"), guard.steps) == (1, [1, 2, 3])
    assert "the state at step 3 is already saved in checkpoint_3.safetensors" in lines
    assert not any("A second Ctrl-C" in line for line in lines), "nothing would be lost"
    assert run(StandIn(tmp_path, "run-2"), text, unbroken / "cache")[0].complete
    assert same_bits(tmp_path / "checkpoint_6.safetensors", unbroken / "run" / "checkpoint_6.safetensors")
    assert same_bits(tmp_path / BEST, unbroken / "run" / BEST)


def test_a_step_that_failed_is_told_also_when_a_stop_ends_the_pause_of_its_last_save(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best_finds_no_room(monkeypatch)
    real = Stepper.step

    def step(stepper: Stepper, number: int) -> StepResult:
        if number == 3:
            raise StepFailed("rank 1 failed in step 4", "look at its log")
        return real(stepper, number)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(StepFailed, match="rank 1 failed"):
        run(StopsForGood(tmp_path), text, unbroken / "cache", 2.0)
    assert load(tmp_path / "checkpoint_3.safetensors").snapshot.facts.state.step == 3


def test_no_checkpoint_tells_of_a_best_model_that_turned_out_to_have_no_room_after_the_training_went_on(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, real, refused = StandIn(tmp_path), PrivateFile.sync, list[str]()

    def sync(file: PrivateFile) -> None:
        if BEST in file.path.name and not refused:
            refused.append(file.path.name)
            deadline = time.monotonic() + 60
            while guard.steps[-1] < 4 and time.monotonic() < deadline:
                time.sleep(0.001)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(PrivateFile, "sync", sync)
    assert run(guard, text, unbroken / "cache", save_interval=99)[0].complete
    assert refused
    made_up, last = sorted(tmp_path.glob("checkpoint_*.safetensors"))
    assert last.name == "checkpoint_6.safetensors"
    lost = next(row["val_ce"] for row in guard.rows if row["step"] == 3)
    assert load(made_up).snapshot.facts.state.best_loss > lost


@pytest.mark.parametrize("what", ["state", "best model"])
def test_a_disk_that_turns_out_faulty_in_a_pause_is_in_the_journal_and_what_it_lost_counts_as_lost(
    what: str, text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saves of a run: 2, best 3, 4. One finds no room; of what is then tried, the state or the best model is refused.
    full, faulty = (1, 2) if what == "state" else (2, 4)
    disk = FullDisk(monkeypatch, range(full, full + 1))
    real = checkpoint_room.save

    def save(*words: Any, **names: Any) -> Any:
        if disk.attempts + 1 == faulty:
            disk.attempts += 1
            raise CheckpointError("cannot save: input/output error", "check the disk")
        return real(*words, **names)

    monkeypatch.setattr(checkpoint_room, "save", save)
    guard = StandIn(tmp_path)
    result, lines = run(guard, text, unbroken / "cache", max_steps=5)
    assert result.complete
    assert guard.events.count("save failed") == 2
    assert "WARNING: cannot save: input/output error; training goes on (check the disk)" in lines
    if what == "best model":
        lost = next(row["val_ce"] for row in guard.rows if row["step"] == 3)
        assert load(tmp_path / "checkpoint_4.safetensors").snapshot.facts.state.best_loss > lost


def test_a_stop_is_heard_while_zeros_are_written_to_see_whether_there_is_room(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[int](), Reserve.keep

    def keep(reserve: Reserve, size: int, *, beside: int = 0, between: Callable[[], None] = lambda: None) -> None:
        if beside:
            asked.append(beside)
        real(reserve, size, beside=beside, between=between)

    FullDisk(monkeypatch, range(3, 4))  # saves: 2, best 3, 4
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(Reserve, "keep", keep)
    monkeypatch.setattr(StandIn, "should_stop", property(lambda _guard: bool(asked)))
    guard = StandIn(tmp_path)
    result, _ = run(guard, text, unbroken / "cache")
    assert not result.complete
    assert guard.steps == [1, 2, 3, 4], "the step that was under way is not made"
    assert "paused" not in guard.events
    assert load(tmp_path / "checkpoint_4.safetensors").snapshot.facts.state.step == 4
    assert not (tmp_path / NAME).exists()


def test_a_stop_waits_for_room_too_while_the_state_is_in_memory_alone(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, range(1, 5))
    guard = StandIn(tmp_path)
    stops_while_paused(guard)
    result, lines = run(guard, text, unbroken / "cache")
    assert not result.complete
    assert sum("A second Ctrl-C leaves at once" in line for line in lines) == 1
    assert load(tmp_path / "checkpoint_2.safetensors").snapshot.facts.state.step == 2


@pytest.mark.parametrize("wait_s", [0.0, 0.02])
def test_after_the_limit_the_run_ends_with_its_state_saved_in_the_reserves_room(
    wait_s: float, text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, range(3, 4))  # saves: 2, best 3, 4
    monkeypatch.setattr(Reserve, "keep", no_room_beside(Reserve.keep))
    with pytest.raises(NoRoom, match="the state at step 4 is saved") as told:
        run(StandIn(tmp_path), text, unbroken / "cache", wait_s)
    assert ("--disk-wait" in told.value.what) == (wait_s > 0)
    assert "start again to go on" in told.value.next_step
    found = newest_valid(tmp_path, print)
    assert found is not None
    assert found.snapshot.facts.state.step == 4
    assert not (tmp_path / NAME).exists()


def no_room_beside(real: Callable[..., None]) -> Callable[..., None]:
    def keep(reserve: Reserve, size: int, *, beside: int = 0, between: Callable[[], None] = lambda: None) -> None:
        if beside:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(reserve, size, between=between)

    return keep


def test_the_reserve_is_there_while_a_run_trains_and_is_given_up_before_the_second_attempt(
    text: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, seen = FullDisk(monkeypatch, range(3, 5)), list[bool]()
    disk.during = lambda: seen.append((tmp_path / NAME).exists())
    assert run(StandIn(tmp_path), text, unbroken / "cache")[0].complete
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("waited", "tries", "free", "due"),
    [(0.4, 0, 10, False), (0.5, 0, 10, True), (0.5, 1, 10, False), (1.0, 1, 10, True), (59, 9, 10, False),
     (60, 9, 10, True), (59, 0, 9, False), (60, 0, 9, True)],
)  # fmt: skip
def test_room_that_is_seen_is_used_soon_and_a_quota_is_asked_rarely(
    waited: float, tries: int, free: int, due: bool
) -> None:
    assert is_due(waited, tries, free, needed=10) is due


def test_a_directory_in_which_no_reserve_can_be_kept_costs_the_reserve_and_not_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_directory: Path) -> Reserve:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(place_room, "Reserve", refused)
    guard = StandIn(tmp_path / "run")
    guard.directory.mkdir()
    result, lines = run(guard, text, tmp_path / "cache")
    assert result.complete
    (said,) = (line for line in lines if "no reserve" in line)
    assert said.startswith("WARNING: no reserve on the disk: input/output error (the disk reports a fault:")
