"""A trainer that is killed at any moment resumes exactly."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from kssm.checkpoint import load
from tests.guard.stage import label_of
from tests.processes.conftest import QUICK, Trainers, progress_of, until

STEPS = 150
FLAGS = (*QUICK, "--max-steps", str(STEPS), "--save-interval", "10", "--eval-interval", "50", "--log-interval", "1")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load(directory / f"checkpoint_{STEPS}.safetensors").snapshot.tensors)


def losses(directory: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("unbroken")
    trainers = Trainers(cache)
    process = trainers.start(*FLAGS, "--output-dir", str(directory))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return directory


def test_kills_at_random_moments_change_no_bit_of_the_final_weights(
    trainers: Trainers, unbroken: Path, tmp_path: Path
) -> None:
    moments, tries = random.Random(20), count()
    while not _killed_six_times(trainers, directory := tmp_path / f"run-{next(tries)}", moments):
        shutil.rmtree(directory)  # it was complete before: on a busy machine a kill may come late
    last = trainers.start(*FLAGS, "--output-dir", str(directory))
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output
    expected, found = weights(unbroken), weights(directory)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(unbroken) == losses(directory)
    assert not (directory / "training.lock").exists()


def _killed_six_times(trainers: Trainers, directory: Path, moments: random.Random) -> bool:
    """Whether a run was begun and killed six times before it was complete."""
    for kill in range(6):  # many more, of trainers that are forked and not executed: tests/faults/saving.py
        process = trainers.start(*FLAGS, "--output-dir", str(directory))
        if kill % 3:  # most kills fall on training, some on start-up
            until(lambda process=process: process.poll() is not None or _trains(directory, process))
        time.sleep(moments.uniform(0.0, 0.25))  # the random moment itself
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, output
            return False
    return True


def _trains(directory: Path, process: object) -> bool:
    beat = progress_of(directory)
    alive = getattr(process, "pid")  # noqa: B009 - the process is only named here
    return bool(beat and beat.phase == "training" and label_of(directory) == alive)


def test_a_torn_newest_checkpoint_is_named_and_passed_over(trainers: Trainers, unbroken: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(unbroken, directory)
    newest = directory / f"checkpoint_{STEPS}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    process = trainers.start(*FLAGS, "--output-dir", str(directory))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f"passed over checkpoint_{STEPS}.safetensors" in output
    assert f"resumed from checkpoint_{STEPS - 10}.safetensors" in output
    expected, found = weights(unbroken), weights(directory)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_complete_run_says_so_and_exits_0(trainers: Trainers, unbroken: Path) -> None:
    process = trainers.start(*FLAGS, "--output-dir", str(unbroken))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "this run is complete" in output


def test_another_configuration_is_refused_with_the_differing_fields(trainers: Trainers, unbroken: Path) -> None:
    process = trainers.start(*FLAGS, "--seed", "7", "--output-dir", str(unbroken))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "training.seed: saved 1337, now 7" in output
    assert "Traceback" not in output


def test_resume_without_a_checkpoint_fails_clearly(trainers: Trainers, tmp_path: Path) -> None:
    process = trainers.start(*FLAGS, "--resume", "--output-dir", str(tmp_path))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "there is no valid checkpoint" in output
    assert "Traceback" not in (tmp_path / "training.log").read_text()


def test_fresh_archives_the_earlier_run_and_starts_anew(trainers: Trainers, unbroken: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(unbroken, directory)
    earlier = json.loads((directory / "run.json").read_text())["run_id"]
    process = trainers.start(*FLAGS, "--fresh", "--max-steps", "3", "--output-dir", str(directory))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert (directory / "archive" / earlier / f"checkpoint_{STEPS}.safetensors").exists()
    assert [path.name for path in directory.glob("checkpoint_*")] == ["checkpoint_3.safetensors"]
