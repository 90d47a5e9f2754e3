"""`kssm train v4` as a real process: killed and resumed with its carried state, guarded, stopped, refused."""

from __future__ import annotations

import json
import re
import signal
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from kssm.checkpoint import load
from tests.processes.conftest import QUICK, Trainers, progress_of, until

STEPS = 40
CARRIED = (
    *QUICK, "--carry-state", "--max-steps", str(STEPS), "--save-interval", "5", "--eval-interval", "30",
    "--log-interval", "1",
)  # fmt: skip
BY_PATH = [sys.executable, "kssm/train_kssm_v4.py", *QUICK]
COLUMNS = re.compile(
    r"step +\d+/\d+  loss +\d+\.\d{3}  ppl +\d+\.\d{2}  R [01]\.\d{4}  k [01]\.\d{4}  "
    r"grad norm \d+\.\d{2}  lr \d\.\d{2}e-\d\d"
)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load(directory / f"checkpoint_{STEPS}.safetensors").snapshot.tensors)


def losses(directory: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def saved_steps(directory: Path) -> int:
    return max((int(path.stem.split("_")[1]) for path in directory.glob("checkpoint_*.safetensors")), default=0)


def killed_midway(trainers: Trainers, directory: Path) -> bool:
    """Whether a run was killed after it had saved, and before its end."""
    first = trainers.start(*CARRIED, "--output-dir", str(directory), model="v4")
    until(lambda: saved_steps(directory) >= 10)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    return saved_steps(directory) < STEPS


def test_a_killed_run_with_carried_state_ends_with_the_bits_of_an_unbroken_one(
    trainers: Trainers, tmp_path: Path
) -> None:
    unbroken, tries = tmp_path / "unbroken", count()
    whole = trainers.start(*CARRIED, "--output-dir", str(unbroken), model="v4")
    while not killed_midway(trainers, broken := tmp_path / f"broken-{next(tries)}"):
        pass  # it was quicker than we were: on a busy machine a kill may come late
    second = trainers.start(*CARRIED, "--output-dir", str(broken), model="v4")
    for process in (second, whole):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    log = (broken / "training.log").read_text()
    assert "resumed from checkpoint_" in log
    assert "not bit for bit" not in log
    assert losses(unbroken) == losses(broken)
    expected, found = tensors(unbroken), tensors(broken)
    assert expected.keys() == found.keys()
    assert any(name.startswith("carried.") for name in expected)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_the_entry_point_by_path_is_guarded_stopped_and_logged_like_the_others(
    trainers: Trainers, tmp_path: Path
) -> None:
    words = ["--max-steps", "100000", "--log-interval", "1", "--save-interval", "100000", "--output-dir", str(tmp_path)]
    running = trainers.spawn([*BY_PATH, *words])
    until(lambda: (beat := progress_of(tmp_path)) and beat.step >= 3)
    refused = trainers.spawn([*BY_PATH, *words])
    said, _ = refused.communicate(timeout=600)
    assert refused.returncode == 3
    assert f"PID {running.pid}" in said
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=600)
    assert running.returncode == 143
    log = (tmp_path / "training.log").read_text()
    assert len(COLUMNS.findall(log)) >= 3
    assert "K-SSM v4 tiny" in log
    assert saved_steps(tmp_path) >= 3
    assert not (tmp_path / "training.lock").exists()


@pytest.mark.parametrize(("model", "flag"), [("v2", "--carry-state"), ("v3", "--carry-state"), ("v4", "--published")])
def test_a_flag_of_another_model_is_refused(trainers: Trainers, model: str, flag: str, tmp_path: Path) -> None:
    process = trainers.start(*QUICK, flag, "--output-dir", str(tmp_path), model=model)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert f"unrecognized arguments: {flag}" in said
