"""A stop is answered in every phase: state saved, lock released, and the exit status says which signal it was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kssm.checkpoint import load, newest_valid
from tests.processes.conftest import QUICK, Trainers, progress_of, until

LONG = ("--max-steps", "100000", "--save-interval", "100000")


def interrupt_in(
    phase: str, trainers: Trainers, directory: Path, flags: tuple[str, ...], number: int
) -> tuple[int, str]:
    process = trainers.start(*flags, "--output-dir", str(directory))

    def reached() -> bool:
        assert process.poll() is None, process.communicate()[0]
        beat = progress_of(directory)
        return bool(beat and beat.phase == phase and (phase != "training" or beat.step >= 1))

    until(reached, 90, 0.001)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


@pytest.mark.parametrize(
    ("phase", "flags", "owed"),
    [
        ("starting", (*QUICK, *LONG), False),
        ("tokenizing", ("--vocabulary", "bpe:4000", *LONG), False),
        ("training", (*QUICK, *LONG, "--eval-interval", "100000"), True),
        ("evaluating", (*QUICK, *LONG, "--eval-batches", "4000"), False),
        ("sampling", (*QUICK, *LONG, "--eval-interval", "5"), False),
        ("saving", (*QUICK, "--max-steps", "100000", "--save-interval", "3", "--size", "small"), True),
    ],
)
def test_sigterm_in_each_phase_saves_what_is_owed_and_releases(
    phase: str, flags: tuple[str, ...], owed: bool, trainers: Trainers, tmp_path: Path
) -> None:
    if phase == "tokenizing":
        trainers.environment["KSSM_CACHE"] = str(tmp_path / "empty cache")
    directory = tmp_path / "run"
    code, output = interrupt_in(phase, trainers, directory, flags, signal.SIGTERM)
    assert code == 143, output
    log = (directory / "training.log").read_text()
    assert log.rstrip().endswith("Released lock")
    assert "TRAINING INTERRUPTED - Saving state..." in log
    assert "Traceback" not in log
    assert not (directory / "training.lock").exists()
    assert not (directory / "training.owner.json").exists()
    found = newest_valid(directory, lambda _line: None)
    if owed:
        assert found is not None
        assert found.snapshot.facts.state.step == progress_of(directory).step  # type: ignore[union-attr]
    assert (found is not None) or "there is nothing to save" in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_sigint_and_sighup_end_alike(number: int, trainers: Trainers, tmp_path: Path) -> None:
    code, _ = interrupt_in("training", trainers, tmp_path, (*QUICK, *LONG, "--eval-interval", "100000"), number)
    assert code == 128 + number
    step = progress_of(tmp_path).step  # type: ignore[union-attr]
    assert load(tmp_path / f"checkpoint_{step}.safetensors").snapshot.facts.state.step == step


def test_a_second_sigint_leaves_at_once_with_no_torn_file_and_the_lock_free(trainers: Trainers, tmp_path: Path) -> None:
    flags = (*QUICK, "--max-steps", "100000", "--save-interval", "3", "--size", "small")
    process = trainers.start(*flags, "--output-dir", str(tmp_path))
    until(lambda: len(list(tmp_path.glob("checkpoint_*.safetensors"))) >= 1, 90)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    # The second one must come while the first is still being answered; the run may be quicker than that.
    until(lambda: process.poll() is not None or _answers(tmp_path), 10, 0.001)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not (tmp_path / "training.lock").exists()
    assert newest_valid(tmp_path, lambda _line: None) is not None


def _answers(directory: Path) -> bool:
    return "TRAINING INTERRUPTED" in (directory / "training.log").read_text()
