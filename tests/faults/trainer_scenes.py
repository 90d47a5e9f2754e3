"""What the trainers do with files, as scenes: checkpoints, the best model, retention, token files, and a whole run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

import solorun
from kssm.checkpoint import BEST, checkpoint_path, load, newest_valid, prune, save
from kssm.cli import main
from kssm.corpus import prepare
from kssm.errors import CheckpointError
from kssm.report import Report
from kssm.saves import Saves
from kssm.snapshot import Snapshot, SnapshotFacts, TrainState
from kssm.tensorfile import Damaged
from solorun.rundir import EVENTS
from tests.faults import guard_scenes
from tests.faults.guard_scenes import FIRST, MAC, journal_faults, left_behind, lost
from tests.faults.shim import Shim
from tests.faults.victims import Outcome, Scene, Stage, apart

RUN, OTHER = "20260101-000000-aaaaaaaa", "20260101-000000-bbbbbbbb"
KEEP = 2
TORN = b"torn, and somebody may want it"
SENTENCE = "It was the best of times, it was the worst of times. "


def snapshot(step: int, run_id: str = RUN) -> Snapshot:
    """A small checkpoint, whose tensors tell its step."""
    facts = SnapshotFacts(TrainState(step, step), {}, {}, "corpus", "plays", run_id, (run_id,), 8)
    return Snapshot({f"model.{part}": torch.full((64,), float(step)) for part in "ab"}, facts)


def two_checkpoints(stage: Stage) -> None:
    """Those of steps 1 and 2, and a best model."""
    stage.results.mkdir()
    for step in (1, 2):
        save(stage.results, snapshot(step))
    save(stage.results, snapshot(1), best=True)


def a_dead_writer(stage: Stage) -> None:
    """And the private file of a writer that was killed."""
    two_checkpoints(stage)
    (stage.results / ".checkpoint_3.safetensors.1-0123abcd.tmp").write_bytes(b"half")


def a_torn_file(stage: Stage) -> None:
    """And a torn file under the next name."""
    two_checkpoints(stage)
    checkpoint_path(stage.results, 3).write_bytes(TORN)


def a_foreign_file(stage: Stage) -> None:
    """And another run's checkpoint under the next name."""
    two_checkpoints(stage)
    save(stage.results, snapshot(3, OTHER))


def saves(stage: Stage) -> int:
    """The checkpoint of step 3, and what is then one too many."""
    save(stage.results, snapshot(3))
    stage.tell("3")
    prune(stage.results, KEEP, {RUN}, 3)
    return 0


def saves_best(stage: Stage) -> int:
    """A better model."""
    save(stage.results, snapshot(3), best=True)
    return 0


def looks(stage: Stage) -> int:
    """What every start does first."""
    found = newest_valid(stage.results, lambda _line: None)
    assert found is not None
    assert found.snapshot.facts.state.step == 2
    return 0


def saves_beside(stage: Stage) -> int:
    """Two saves beside a training, told in journal and log."""
    with solorun.hold(stage.results, settle_s=0) as run:
        step = 2
        now = TrainState(step, step)
        with Saves(
            run, Report(run.log, terminal=False), KEEP, lambda _best: snapshot(step), now, disk_wait_s=0
        ) as kept:
            for step in (3, 4):
                kept.begin(snapshot(step))
                kept.release()
                kept.settle()
                if kept.saved == TrainState(step, step):
                    stage.tell(str(step))
    return run.exit_code


def judge(stage: Stage, outcome: Outcome) -> Iterator[str]:
    """What must be true of checkpoints after anything."""
    if not outcome.was_killed and not outcome.removals_failed:
        yield from _private_files(stage.results, outcome.before)
    reported = max((2, *map(int, stage.told())))
    code = apart(lambda: _look_and_go_on(stage, reported), stage.said)
    if code:
        yield f"the next start: {stage.said.read_text()}"
    yield from _private_files(stage.results, {})
    kept = {path.name: path.read_bytes() for path in stage.results.glob("checkpoint_3*")}
    before = outcome.before.get("results/checkpoint_3.safetensors")
    if before is not None and before not in kept.values():
        yield f"what was torn or foreign is lost: {sorted(kept)}"


def _look_and_go_on(stage: Stage, reported: int) -> int:
    """What the next start finds, and whether it can save."""
    with solorun.hold(stage.results, settle_s=0):
        found = newest_valid(stage.results, lambda _line: None)
        newest = found.snapshot.facts.state.step if found else 0
        assert newest >= reported, f"the newest is {newest}, and {reported} was reported"
        whole = [load(stage.results / BEST)]
        for path in stage.results.glob("checkpoint_*.safetensors"):
            with contextlib.suppress(Damaged):
                whole.append(load(path))
        assert len(whole) > KEEP, f"no more is whole than {[str(one.path) for one in whole]}"
        for one in whole:
            step = one.snapshot.facts.state.step
            assert all(bool((tensor == step).all()) for tensor in one.snapshot.tensors.values())
        save(stage.results, snapshot(newest + 1))
        prune(stage.results, KEEP, {RUN}, newest + 1)
        assert load(checkpoint_path(stage.results, newest + 1))
    return 0


def _private_files(directory: Path, before: dict[str, bytes]) -> Iterator[str]:
    for name in sorted(os.listdir(directory)) if directory.is_dir() else ():
        if (name.endswith(".tmp") or name.startswith("tmp")) and f"{directory.name}/{name}" not in before:
            yield f"{name} is left"


def a_text(stage: Stage) -> None:
    """Three documents outside of the disk that fails."""
    place = _text(stage)
    place.mkdir()
    for number in range(3):
        (place / f"{number}.txt").write_text(SENTENCE * 4 * (number + 1))


def _text(stage: Stage) -> Path:
    return stage.notes.with_name("text")


def tokenizes(stage: Stage) -> int:
    """Text made into a token file and a tokenizer."""
    corpus = prepare(_text(stage), stage.cache, "bytes")
    stage.tell(corpus.fingerprint)
    return 0


def judge_tokens(stage: Stage, outcome: Outcome) -> Iterator[str]:
    """What must be true of token files after anything."""
    if not outcome.was_killed and not outcome.removals_failed:
        yield from _private_files(stage.cache, {})

    def again() -> None:
        corpus = prepare(_text(stage), stage.cache, "bytes")
        whole = prepare(_text(stage), stage.cache.with_name("elsewhere"), "bytes")
        assert {corpus.fingerprint, *stage.told()} == {whole.fingerprint}
        assert (corpus.train == whole.train).all()
        assert (corpus.validation == whole.validation).all()

    if apart(again, stage.said):
        yield f"the next start: {stage.said.read_text()}"
    yield from _private_files(stage.cache, {})


_TRAIN = (
    "train", "v3", "--size", "tiny", "--vocabulary", "bytes", "--batch-size", "2", "--seq-length", "16",
    "--eval-batches", "1", "--eval-interval", "2", "--save-interval", "1", "--log-interval", "1", "--keep", "2",
    "--disk-wait", "0",
)  # fmt: skip


def trains(stage: Stage, steps: int = 2, *more: str) -> int:
    """A run from the command line to its end."""
    torch.set_num_threads(1)
    words = "--max-steps", str(steps), "--data-dir", str(_text(stage)), "--output-dir", str(stage.results)
    return main([*_TRAIN, *words, *more])


def a_run_before(stage: Stage) -> None:
    """A run of two steps."""
    a_text(stage)
    trains(stage)


def begins_afresh(stage: Stage) -> int:
    """The same, with what was there archived."""
    return trains(stage, 2, "--fresh")


def judge_run(stage: Stage, outcome: Outcome) -> Iterator[str]:
    """What must be true after a whole run was struck."""
    reported = _saved(stage)
    code = apart(lambda: trains(stage, 3), stage.said)
    if code:
        yield f"the next start ended with {code}: {stage.said.read_text()[-600:]}"
        return
    said = stage.said.read_text()
    resumed = next((line for line in said.splitlines() if line.startswith("resumed from checkpoint_")), "")
    step = int(resumed.split("_")[1].split(".")[0]) if resumed else 0
    if not outcome.before and step < reported:
        yield f"step {reported} was reported saved, and the next start resumed at {step}"
    yield from left_behind(stage, "the next start", {})
    yield from _private_files(stage.results, {})
    yield from _private_files(stage.cache, {})
    yield from journal_faults(stage.results / EVENTS)
    yield from lost(stage, outcome)
    with contextlib.suppress(CheckpointError):
        if load(checkpoint_path(stage.results, 3)).snapshot.facts.state.step == 3:
            return
    yield "the run that went on has no checkpoint of its last step"


def _saved(stage: Stage) -> int:
    found = 0
    with contextlib.suppress(OSError):
        for line in (stage.results / EVENTS).read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                found = max(found, event["step"] if event["event"] == "saved" else 0)
    return found


def warm_up(shim: Shim, room: Path) -> None:
    """Import what is imported late, and let torch and the kernels make what they make once."""
    guard_scenes.warm_up(shim, room)
    place = room / "warm"
    stage = Stage(place / "disk", shim, place / "notes")
    stage.place.mkdir(parents=True)
    os.environ["SOLORUN_STATE"], os.environ["KSSM_CACHE"] = str(place / "state"), str(stage.cache)
    a_run_before(stage)
    shutil.rmtree(place)


SCENES = (
    Scene("a save", two_checkpoints, saves, judge),
    Scene("the best model", two_checkpoints, saves_best, judge),
    Scene("a save over a torn file", a_torn_file, saves, judge),
    Scene("a save over a foreign file", a_foreign_file, saves, judge),
    Scene("the newest after a dead writer", a_dead_writer, looks, judge),
    Scene("saves beside the training", two_checkpoints, saves_beside, judge),
    Scene("a token file", a_text, tokenizes, judge_tokens),
    Scene("a token file without unnamed files", a_text, tokenizes, judge_tokens, flags=MAC),
    Scene("kssm train", a_text, trains, judge_run, flags=FIRST, most=150),
    Scene("kssm train --fresh", a_run_before, begins_afresh, judge_run, flags=FIRST, most=150),
)
