"""The loop's order of things, with a stand-in guard that is told and asked; model, corpus and disk are real."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kssm import loop as loop_room
from kssm import step as step_room
from kssm import tensorfile
from kssm.atomicfile import PrivateFile
from kssm.checkpoint import load, newest_valid
from kssm.config import ModelName
from kssm.errors import BadUsage, CheckpointError, CorpusError, StepFailed
from kssm.report import Report
from kssm.saves import Saves
from kssm.train import Result, train
from kssm.vocabulary import LearnPairs
from kssm.wishes import Wishes
from tests.trainer.scenes import write_scenes

QUICK = {"batch_size": 2, "seq_length": 32, "eval_batches": 1, "max_steps": 6, "eval_interval": 3, "save_interval": 2}


class StandIn:
    """A guard without a lock: notes what it is told, and asks for a stop when it is told to."""

    def __init__(self, directory: Path, run_id: str = "run-1") -> None:
        self.directory = directory
        self.run_id = run_id
        self.stop_reason = "SIGTERM"
        self.stop_when: tuple[str, int] | None = None
        self.phases: list[str] = ["starting"]
        self.steps: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.archived: list[Any] = []

    @property
    def should_stop(self) -> bool:
        # Between two steps a run trains, also while a save is still being written beside it.
        phase = "training" if self.phases[-1] == "saving" else self.phases[-1]
        return self.stop_when == (phase, self.steps[-1] if self.steps else 0)

    def progress(self, step: int, _total: int) -> None:
        self.steps.append(step)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self.phases[-1]
        self.phases.append(name)
        try:
            yield
        finally:
            self.phases.append(before)

    def enter_phase(self, name: str) -> None:
        self.phases.append(name)

    def beat(self) -> None:
        return

    def metrics(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def event(self, name: str, **_facts: Any) -> None:
        self.events.append(name)

    def archive(self, patterns: Any) -> None:
        self.archived.append(patterns)

    def describe(self, **_facts: Any) -> None:
        return


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A run flushes denormals for the whole process; the tests after it want them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("text") / "scenes")


def run(guard: StandIn, text: Path, cache: Path, model: ModelName = "v3", **said: Any) -> tuple[Result, list[str]]:
    lines: list[str] = []
    wishes = Wishes(model, "tiny", training={**QUICK, **said}, text=text, vocabulary="bytes", device="cpu")
    return train(wishes, cache, guard, Report(lines.append, terminal=False)), lines


def test_a_whole_run_evaluates_saves_and_ends_with_the_last_step_saved(text: Path, tmp_path: Path) -> None:
    guard = StandIn(tmp_path)
    result, lines = run(guard, text, tmp_path / "cache")
    assert result.complete
    assert guard.steps == [1, 2, 3, 4, 5, 6]
    assert load(tmp_path / "checkpoint_6.safetensors").snapshot.facts.state.evaluated_step == 6
    assert [row["step"] for row in guard.rows if "val_ce" in row] == [3, 6]
    assert guard.events.count("saved") == 3
    assert any("unigram" in line for line in lines)


def test_only_the_newest_checkpoints_and_the_best_stay(text: Path, tmp_path: Path) -> None:
    run(StandIn(tmp_path), text, tmp_path / "cache", save_interval=1, keep=2)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "best_model.safetensors", "checkpoint_5.safetensors", "checkpoint_6.safetensors",
    ]  # fmt: skip


def test_a_stop_in_an_evaluation_leaves_it_to_the_next_run(text: Path, tmp_path: Path) -> None:
    guard = StandIn(tmp_path)
    guard.stop_when = ("evaluating", 3)
    result, lines = run(guard, text, tmp_path / "cache")
    assert not result.complete
    assert any(line.startswith("TRAINING INTERRUPTED - Saving state...") for line in lines)
    assert load(tmp_path / "checkpoint_3.safetensors").snapshot.facts.state.evaluated_step == 0
    second = StandIn(tmp_path, "run-2")
    result, lines = run(second, text, tmp_path / "cache")
    assert result.complete
    order = [line for line in lines if line.startswith(("evaluation at", "step 4", "resumed"))]
    assert order[0].startswith("resumed from checkpoint_3")
    assert order[1].startswith("evaluation at step 3")
    assert load(tmp_path / "checkpoint_6.safetensors").snapshot.facts.lineage == ("run-1", "run-2")


@pytest.mark.parametrize("model", ["v2", "v3"])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_very_same_bits(
    model: ModelName, stop_after: int, text: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(StandIn(whole), text, tmp_path / "cache", model)
    first = StandIn(parts)
    first.stop_when = ("training", stop_after)
    assert not run(first, text, tmp_path / "cache", model)[0].complete
    assert run(StandIn(parts, "run-2"), text, tmp_path / "cache", model)[0].complete
    one, other = (load(place / "checkpoint_6.safetensors").snapshot for place in (whole, parts))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert one.facts.state == other.facts.state


def test_a_disk_that_refuses_a_periodic_save_costs_a_warning_not_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop_room.checkpoint.save, []

    def refuse_the_first(*words: Any, **names: Any) -> Any:
        calls.append(words)
        if len(calls) == 1:
            raise CheckpointError("cannot save: no space left on device", "free some room")
        return real(*words, **names)

    monkeypatch.setattr(loop_room.checkpoint, "save", refuse_the_first)
    result, lines = run(StandIn(tmp_path), text, tmp_path / "cache")
    assert result.complete
    assert any(line.startswith("WARNING: cannot save") for line in lines)
    assert newest_valid(tmp_path, lambda _line: None) is not None


def test_fresh_archives_nothing_when_the_new_run_is_refused(text: Path, tmp_path: Path) -> None:
    guard = StandIn(tmp_path)
    run(guard, text, tmp_path / "cache")
    wishes = Wishes("v3", "tiny", text=tmp_path / "nowhere", vocabulary="bytes", device="cpu", fresh=True)
    with pytest.raises(CorpusError):
        train(wishes, tmp_path / "cache", guard, Report(lambda _line: None, terminal=False))
    assert guard.archived == []


@pytest.mark.parametrize("said", [{"seq_length": 900}, {"carry_state": True, "batch_size": 1000}])
def test_fresh_archives_nothing_when_the_text_is_too_short(said: dict[str, Any], text: Path, tmp_path: Path) -> None:
    guard, short = StandIn(tmp_path), tmp_path / "short.txt"
    run(guard, text, tmp_path / "cache", "v4")
    short.write_text("To be, or not to be.\n" * 300)
    wishes = Wishes("v4", "tiny", {**QUICK, **said}, text=short, vocabulary="bytes", device="cpu", fresh=True)
    with pytest.raises(CorpusError, match="a part of the text has"):
        train(wishes, tmp_path / "cache", guard, Report(lambda _line: None, terminal=False))
    assert guard.archived == []


def test_fresh_clears_what_a_killed_save_left_under_its_private_name(text: Path, tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint_5.safetensors.123-0123abcd.tmp"
    left.write_bytes(b"half a checkpoint")
    wishes = Wishes("v3", "tiny", {**QUICK, "max_steps": 1}, text=text, vocabulary="bytes", device="cpu", fresh=True)
    train(wishes, tmp_path / "cache", StandIn(tmp_path), Report(lambda _line: None, terminal=False))
    assert not left.exists()


def test_a_tokenizer_file_is_found_again_from_another_directory(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = LearnPairs(300).learn([(text / "0-0.txt").read_text()], 1)
    (tmp_path / "own.json").write_text(learned.document)
    monkeypatch.chdir(tmp_path)
    wishes = Wishes("v3", "tiny", QUICK, text=text, vocabulary="own.json", device="cpu")
    train(wishes, tmp_path / "cache", StandIn(tmp_path), Report(lambda _line: None, terminal=False))
    monkeypatch.chdir(text)
    on = Wishes("v3", training={"max_steps": 7}, device="cpu")
    assert train(on, tmp_path / "cache", StandIn(tmp_path), Report(lambda _line: None, terminal=False)).complete


def test_fewer_steps_than_were_made_are_refused(text: Path, tmp_path: Path) -> None:
    run(StandIn(tmp_path), text, tmp_path / "cache")
    with pytest.raises(BadUsage, match="beyond --max-steps 4"):
        run(StandIn(tmp_path), text, tmp_path / "cache", max_steps=4)


def test_an_evaluation_that_runs_out_of_memory_goes_on_with_fewer_sequences(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_room.evaluate

    def small_memory(model: Any, batches: Any, *rest: Any) -> Any:
        held = list(batches)
        if len(held[0]) > 1:
            raise torch.OutOfMemoryError("injected: no room for two sequences")
        return real(model, held, *rest)

    monkeypatch.setattr(loop_room, "evaluate", small_memory)
    result, lines = run(StandIn(tmp_path), text, tmp_path / "cache")
    assert result.complete
    assert "evaluation: out of memory; going on with 1 sequences at a time" in lines


@pytest.mark.parametrize("where", ["step", "evaluate", "sample_text"])
def test_memory_that_does_not_take_one_sequence_ends_a_run_with_its_last_step_saved(
    where: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, room, name = StandIn(tmp_path), loop_room, where
    if where == "step":
        room, name = step_room, "objective"
    real = getattr(room, name)

    def full_after_step_three(*words: Any, **names: Any) -> Any:
        if guard.steps[-1:] == [3]:
            raise torch.OutOfMemoryError("injected: no room for one sequence")
        return real(*words, **names)

    monkeypatch.setattr(room, name, full_after_step_three)
    with pytest.raises(StepFailed, match="out of memory with one sequence") as ended:
        run(guard, text, tmp_path / "cache", save_interval=100)
    assert "other programs" in ended.value.next_step
    assert load(tmp_path / "checkpoint_3.safetensors").snapshot.facts.state.step == 3
    monkeypatch.setattr(room, name, real)
    assert run(StandIn(tmp_path, "run-2"), text, tmp_path / "cache")[0].complete


def test_an_evaluation_stands_in_the_metrics_also_when_a_stop_cuts_its_sample_short(text: Path, tmp_path: Path) -> None:
    guard, second = StandIn(tmp_path), StandIn(tmp_path, "run-2")
    guard.stop_when = ("sampling", 3)
    assert not run(guard, text, tmp_path / "cache")[0].complete
    assert run(second, text, tmp_path / "cache")[0].complete
    assert [row["step"] for row in (*guard.rows, *second.rows) if "val_ce" in row] == [3, 6]


def test_a_run_that_goes_on_with_another_micro_batch_says_that_the_bits_differ(text: Path, tmp_path: Path) -> None:
    run(StandIn(tmp_path), text, tmp_path / "cache", max_steps=4)
    _, lines = run(StandIn(tmp_path, "run-2"), text, tmp_path / "cache", max_steps=4, batch_size=1)
    assert [line for line in lines if line.startswith("not bit for bit")] == [
        "not bit for bit what an unbroken run would be: sequences at a time 2 -> 1"
    ]


def test_a_run_that_goes_on_with_other_evaluations_says_that_they_do_not_compare(text: Path, tmp_path: Path) -> None:
    run(StandIn(tmp_path), text, tmp_path / "cache", max_steps=4)
    _, lines = run(StandIn(tmp_path, "run-2"), text, tmp_path / "cache", max_steps=4, eval_batches=3)
    assert [line.split(":")[0] for line in lines if line.startswith("an evaluation reads")] == [
        "an evaluation reads 6 held-out sequences instead of 2"
    ]


def test_a_run_that_goes_on_lets_go_of_the_checkpoint_that_it_came_from(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(StandIn(tmp_path), text, tmp_path / "cache", max_steps=4)
    real, kept, second = newest_valid, list[Any](), StandIn(tmp_path, "run-2")

    def found(*words: Any) -> Any:
        loaded = real(*words)
        assert loaded is not None
        kept.extend(map(weakref.ref, loaded.snapshot.tensors.values()))
        return loaded

    monkeypatch.setattr(loop_room.checkpoint, "newest_valid", found)
    monkeypatch.setattr(second, "progress", lambda *_: alive.append(sum(ref() is not None for ref in kept)))
    alive = list[int]()
    run(second, text, tmp_path / "cache", max_steps=6)
    assert kept
    assert alive == [0, 0]


def test_a_disk_that_refuses_the_last_save_is_an_error(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: Any, **_names: Any) -> Any:
        raise CheckpointError("cannot save: no space left on device", "free some room")

    monkeypatch.setattr(loop_room.checkpoint, "save", refuse)
    with pytest.raises(CheckpointError, match="no space"):
        run(StandIn(tmp_path), text, tmp_path / "cache")


def test_what_is_saved_beside_the_training_is_what_a_run_that_waits_for_every_save_saves(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, waiting = tmp_path / "beside", tmp_path / "waiting"
    beside.mkdir()
    waiting.mkdir()
    said = {"save_interval": 1, "keep": 9}
    begin = Saves.begin
    with monkeypatch.context() as patient:
        patient.setattr(Saves, "begin", lambda self, *words, **names: (begin(self, *words, **names), self.finish()))
        run(StandIn(waiting), text, tmp_path / "cache", **said)
    write = PrivateFile.write

    def slow(file: PrivateFile, data: bytes | memoryview) -> None:
        time.sleep(0.0002)
        write(file, data)

    monkeypatch.setattr(PrivateFile, "write", slow)
    monkeypatch.setattr(tensorfile, "_BLOCK", 1 << 12)
    run(StandIn(beside), text, tmp_path / "cache", **said)
    names = sorted(path.name for path in waiting.glob("*.safetensors"))
    assert len(names) == 7
    assert [path.name for path in sorted(beside.glob("*.safetensors"))] == names
    assert [load(beside / name).digest for name in names] == [load(waiting / name).digest for name in names]


@pytest.mark.parametrize("refused", [loop_room.checkpoint.BEST, "checkpoint_3.safetensors"])
def test_a_best_model_that_could_not_be_saved_does_not_count_as_saved(
    refused: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_room.checkpoint.save
    refusals: list[str] = []

    def save(directory: Path, snapshot: Any, *, best: bool = False, **names: Any) -> Any:
        name = loop_room.checkpoint.BEST if best else f"checkpoint_{snapshot.facts.state.step}.safetensors"
        if name == refused and not refusals:
            refusals.append(name)
            raise CheckpointError(f"cannot save {name}: no space left on device", "free some room")
        return real(directory, snapshot, best=best, **names)

    monkeypatch.setattr(loop_room.checkpoint, "save", save)
    guard = StandIn(tmp_path)
    result, _ = run(guard, text, tmp_path / "cache", max_steps=4, save_interval=3)
    assert result.complete
    assert refusals == [refused]
    assert guard.events.count("save failed") == 1
    if refused == loop_room.checkpoint.BEST:
        lost = next(row["val_ce"] for row in guard.rows if row["step"] == 3)
        assert load(tmp_path / "checkpoint_3.safetensors").snapshot.facts.state.best_loss > lost
    best = load(tmp_path / loop_room.checkpoint.BEST).snapshot.facts.state
    assert best.best_loss == load(tmp_path / "checkpoint_4.safetensors").snapshot.facts.state.best_loss
