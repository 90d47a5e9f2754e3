"""A stop is answered in every phase: state saved, lock released, and the exit status says which signal it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kssm.checkpoint import load, newest_valid
from tests.processes.conftest import QUICK, ROOT, Trainers, progress_of, until

LONG = ("--max-steps", "100000", "--save-interval", "100000")
ONCE = ("starting", "tokenizing")
"""Phases that do not come again: where one was over before it was seen, the stop comes in the next, and holds there."""


def started_in(phase: str, trainers: Trainers, directory: Path, flags: tuple[str, ...]) -> subprocess.Popen[str]:
    """A trainer that has reached a phase."""
    process = trainers.start(*flags, "--output-dir", str(directory))

    def reached() -> bool:
        assert process.poll() is None, process.communicate()[0]
        beat = progress_of(directory)
        if beat is None or (beat.phase == "training" and beat.step < 1):
            return False
        return beat.phase == phase or (phase in ONCE and beat.step >= 1)

    until(reached, every_s=0.001)
    return process


def stop(directory: Path, *flags: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """`solorun stop DIR`, to its end; or another program in its place."""
    command = [sys.executable, *(("-c", program) if program else ("-m", "solorun")), "stop", str(directory), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


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
def test_a_stop_in_each_phase_saves_what_is_owed_releases_and_says_so(
    phase: str, flags: tuple[str, ...], owed: bool, trainers: Trainers, tmp_path: Path
) -> None:
    if phase == "tokenizing":
        trainers.environment["KSSM_CACHE"] = str(tmp_path / "empty cache")
    directory = tmp_path / "run"
    process = started_in(phase, trainers, directory, flags)
    said = stop(directory)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert said.returncode == 0, said.stderr
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
    if found is not None:
        assert f"newest checkpoint: checkpoint_{found.snapshot.facts.state.step}.safetensors\n" in said.stdout
    else:
        assert "no step was made: nothing was owed" in said.stdout
    assert "it is " in said.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_every_polite_signal_ends_alike(number: int, trainers: Trainers, tmp_path: Path) -> None:
    process = started_in("training", trainers, tmp_path, (*QUICK, *LONG, "--eval-interval", "100000"))
    process.send_signal(number)
    process.communicate(timeout=600)
    assert process.returncode == 128 + number
    step = progress_of(tmp_path).step  # type: ignore[union-attr]
    assert load(tmp_path / f"checkpoint_{step}.safetensors").snapshot.facts.state.step == step


def test_a_second_sigint_leaves_at_once_with_no_torn_file_and_the_lock_free(trainers: Trainers, tmp_path: Path) -> None:
    flags = (*QUICK, "--max-steps", "100000", "--save-interval", "3", "--size", "small")
    process = trainers.start(*flags, "--output-dir", str(tmp_path))
    until(lambda: len(list(tmp_path.glob("checkpoint_*.safetensors"))) >= 1)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    # The second one must come while the first is still being answered; the run may be quicker than that.
    until(lambda: process.poll() is not None or _answers(tmp_path), every_s=0.001)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert not (tmp_path / "training.lock").exists()
    assert newest_valid(tmp_path, lambda _line: None) is not None


def test_a_stop_before_the_trainer_has_a_label_is_a_real_stop(trainers: Trainers, tmp_path: Path) -> None:
    process = trainers.start(*QUICK, *LONG, "--output-dir", str(tmp_path / "run"))
    until(lambda: (tmp_path / "run").exists(), every_s=0.0005)
    said = stop(tmp_path / "run")
    while "no run to stop" in said.stdout:  # asked before the trainer had even locked its directory
        assert process.poll() is None, process.communicate()[0]
        said = stop(tmp_path / "run")
    process.communicate(timeout=600)
    assert (process.returncode, said.returncode) == (143, 0), said.stdout + said.stderr
    beat = progress_of(tmp_path / "run")
    # A stop that took seconds to begin found a trainer that had made steps.
    kept = f"newest checkpoint: checkpoint_{beat.step}." if beat is not None and beat.step else "nothing was owed"
    assert kept in said.stdout


def test_a_suspended_trainer_is_woken_and_saves(trainers: Trainers, tmp_path: Path) -> None:
    flags = (*QUICK, "--max-steps", "100000", "--save-interval", "5", "--eval-interval", "100000")
    process = started_in("training", trainers, tmp_path, flags)
    until(lambda: (beat := progress_of(tmp_path)) is not None and beat.step > 6)
    process.send_signal(signal.SIGSTOP)
    said = stop(tmp_path, "--grace", "100", "--json")
    process.communicate(timeout=600)
    row = json.loads(said.stdout)
    assert row["result"] == "stopped"  # woken, it saves as ever
    assert row["checkpoint"]["step"] == row["step"] == newest_valid(tmp_path, print).snapshot.facts.state.step  # type: ignore[union-attr]


def _answers(directory: Path) -> bool:
    return "TRAINING INTERRUPTED" in (directory / "training.log").read_text()
