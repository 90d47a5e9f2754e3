"""What others rely on: the trainers' flags, defaults and metrics keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kssm.config import as_facts, model_config, train_config
from tests.processes.conftest import QUICK, ROOT

FLAGS = {
    "--max-steps", "--resume", "--lambda-reg", "--batch-size", "--lr", "--data-dir", "--output-dir", "--size",
    "--gradient-accumulation", "--seq-length", "--seed", "--device", "--save-interval", "--eval-interval",
    "--log-interval", "--fresh", "--share-accelerator",
}  # fmt: skip
SHAPES = {
    ("v2", "small"): (256, 4, 128, 512), ("v2", "medium"): (384, 6, 192, 512), ("v2", "large"): (512, 8, 256, 1024),
    ("v3", "medium"): (384, 6, 192, 1024),
}  # fmt: skip
PUBLISHED = {
    "v2": {"seq_length": 256, "batch_size": 16, "gradient_accumulation": 4, "lr": 3e-4, "beta1": 0.9, "beta2": 0.95,
           "weight_decay": 0.1, "warmup_steps": 1000, "max_steps": 20_000, "eval_interval": 500, "save_interval": 500,
           "log_interval": 25, "clip": 1.0},
    "v3": {"seq_length": 512, "batch_size": 8, "gradient_accumulation": 8, "lr": 4e-4, "weight_decay": 0.1,
           "warmup_steps": 1000, "max_steps": 10_000, "eval_interval": 500, "eval_batches": 20, "save_interval": 1000,
           "log_interval": 20, "clip": 1.0, "keep": 3, "lambda_reg": 0.5, "lambda1": 0.1, "lambda2": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(
    "program", ["kssm/train_kssm_v3.py", "kssm/train_kssm_v2_efficient.py", "kssm/train_kssm_v4.py"]
)
def test_the_entry_points_have_the_procedures_flags(program: str) -> None:
    told = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"--[a-z-]+", told.stdout)) >= FLAGS


@pytest.mark.parametrize(("name", "size"), SHAPES)
def test_the_published_sizes(name: str, size: str) -> None:
    found = model_config(name, size, 8192)  # type: ignore[arg-type]
    assert (found.hidden, found.layers, found.oscillators, found.positions) == SHAPES[name, size]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_training(name: str) -> None:
    found = as_facts(train_config(name, "medium"))  # type: ignore[arg-type]
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", ["v2", "v3", "v4"])
def test_metrics_lines_have_the_frozen_keys(name: str, tmp_path: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "kssm", "train", name, *QUICK, "--max-steps", "4", "--eval-interval", "2"]
    command += ["--log-interval", "1", "--output-dir", str(tmp_path)]
    own = {"SOLORUN_STATE": str(tmp_path / "state")}  # else a person would find the test among their own runs
    environment = {"PATH": "/usr/bin:/bin", "KSSM_CACHE": str(cache), "OMP_NUM_THREADS": "1", **own}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    keys = {"run_id", "step", "ce", "loss", "reg", "R", "u", "k", "grad_norm", "lr", "tokens", "seconds"}
    assert all(keys <= row.keys() for row in rows)
    assert all({"val_ce", "val_R", "val_u"} <= row.keys() for row in rows if row["step"] % 2 == 0)
