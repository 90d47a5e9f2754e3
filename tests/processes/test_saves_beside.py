"""Saves beside the training in real trainers on a slow or full disk: stopped, killed, and gone on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kssm.checkpoint import load, newest_valid
from solorun.stopping import SAME_REQUEST_S
from tests.guard.stage import whole_rows
from tests.processes.conftest import QUICK, Trainers, progress_of, until
from tests.processes.test_graceful_stop import stop

# A trainer whose disk is slow: each write waits, and each fsync of a checkpoint; or faulty; or with a limit on files.
# With AWAITS_STOP no fsync ends, nor does the second step get to its second micro-batch, before a stop is asked for.
TRAINER = """
import errno, os, resource, sys, time
from kssm import tensorfile
from kssm.atomicfile import PrivateFile
write_s, sync_s, limit = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
write, sync = PrivateFile.write, PrivateFile.sync
def await_stop():
    while "AWAITS_STOP" in os.environ and '"stop requested"' not in open(sys.argv[-1] + "/events.jsonl").read():
        time.sleep(0.01)
def slow_write(file, data):
    if "checkpoint" in file.path.name:
        time.sleep(write_s)
    if limit < 0 and file.path.name.startswith((".checkpoint", ".best_model")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    write(file, data)
def slow_sync(file):
    if "checkpoint" in file.path.name:
        await_stop()
        time.sleep(sync_s)
    sync(file)
if os.environ.get("AWAITS_STOP") == "within a step":
    from kssm.step import Stepper
    add = Stepper._add_gradient
    def slow_add(self, step, micro_batch, *more, **named):
        if (step, micro_batch) == (1, 1):
            await_stop()
        return add(self, step, micro_batch, *more, **named)
    Stepper._add_gradient = slow_add
PrivateFile.write, PrivateFile.sync = slow_write, slow_sync
tensorfile._BLOCK = 1 << 16
if limit > 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from kssm.cli import main
sys.exit(main(["train", "v3", *sys.argv[4:]]))
"""
LEAVES_SLOWLY = """
import sys, solorun.patience
from solorun.cli.main import main
solorun.patience._AFTER_SAVE_S = 100.0
sys.exit(main())
"""
"""`solorun`, for a machine on which a trainer takes longer than usual to leave after its last save."""
FAULTY = -1
LONG = (*QUICK, "--max-steps", "100000", "--save-interval", "20", "--eval-interval", "100000")


def start(
    trainers: Trainers, directory: Path, *flags: str, write_s: float = 0.0, sync_s: float = 0.0, limit: int = 0,
    awaits_stop: str = "",
) -> subprocess.Popen[str]:  # fmt: skip
    """A trainer on such a disk."""
    disk = (str(write_s), str(sync_s), str(limit))
    environment = {**trainers.environment, **({"AWAITS_STOP": awaits_stop} if awaits_stop else {})}
    command = [sys.executable, "-c", TRAINER, *disk, *flags, "--output-dir", str(directory)]
    return trainers.spawn(command, env=environment)


def events(directory: Path, *names: str) -> list[dict[str, object]]:
    """The journal's events of these names."""
    return [event for event in whole_rows(directory / "events.jsonl") if event["event"] in names]


def trains_and_saves(directory: Path) -> bool:
    """Whether steps go on beside a save of an earlier one."""
    beat, begun = progress_of(directory), events(directory, "saving")
    return bool(beat and begun and beat.phase == "saving" and beat.step > int(str(begun[-1]["step"])))


def test_a_stop_while_training_goes_on_beside_a_save_waits_for_it_even_beyond_its_patience(
    trainers: Trainers, tmp_path: Path
) -> None:
    process = start(trainers, tmp_path, *LONG, sync_s=3.0, awaits_stop="anywhere")
    until(lambda: trains_and_saves(tmp_path), every_s=0.001)
    said = stop(tmp_path, "--grace", "1", "--kill", "--json", program=LEAVES_SLOWLY)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    row = json.loads(said.stdout)
    assert row["result"] == "stopped", "neither the save beside the training nor the last one was killed"
    assert "it is saving" in said.stderr
    steps = [event["step"] for event in events(tmp_path, "saved")]
    assert steps == sorted(set(steps)), "no step is saved twice"
    assert len(steps) == 2
    assert row["step"] == row["checkpoint"]["step"] == steps[-1]
    for step in steps:
        assert load(tmp_path / f"checkpoint_{step}.safetensors").snapshot.facts.state.step == step
    assert not list(tmp_path.glob(".checkpoint*"))


def test_a_stop_within_a_step_whose_state_is_being_saved_saves_it_once(trainers: Trainers, tmp_path: Path) -> None:
    # The stop is heard in the middle of the step after the one that is being saved.
    flags = (*QUICK, "--max-steps", "100000", "--save-interval", "1", "--eval-interval", "100000")
    within = {"sync_s": 2.0, "awaits_stop": "within a step"}
    process = start(trainers, tmp_path, *flags, "--gradient-accumulation", "4", **within)  # type: ignore[arg-type]
    until(lambda: (beat := progress_of(tmp_path)) is not None and beat.phase == "saving", every_s=0.001)
    stop(tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert [event["step"] for event in events(tmp_path, "saving", "saved")] == [1, 1]
    assert "the state at step 1 is already saved in checkpoint_1.safetensors" in output


def test_a_second_sigint_while_a_save_runs_beside_the_training_leaves_at_once_with_nothing_half(
    trainers: Trainers, tmp_path: Path
) -> None:
    process = start(trainers, tmp_path, *LONG, write_s=0.2)  # a save takes most of a minute
    until(lambda: list(tmp_path.glob(".checkpoint_20.*")), every_s=0.001)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    until(lambda: time.monotonic() > asked + 2 * SAME_REQUEST_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert not list(tmp_path.glob("*checkpoint*"))
    assert not list(tmp_path.glob(".checkpoint*"))
    assert not (tmp_path / "training.lock").exists()


THIRTY = (*QUICK, "--max-steps", "30", "--save-interval", "10", "--eval-interval", "15")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of thirty steps that nothing interrupted."""
    directory = tmp_path_factory.mktemp("unbroken")
    process = start(Trainers(cache), directory, *THIRTY)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return directory


@pytest.mark.parametrize(
    ("write_s", "sync_s"), [(0.2, 0), (0, 600)], ids=["while it is written", "before it is durable"]
)
def test_a_kill_beside_a_save_leaves_the_older_checkpoint_and_the_run_goes_on_to_the_bit(
    write_s: float, sync_s: float, trainers: Trainers, unbroken: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    shutil.copy(unbroken / "checkpoint_10.safetensors", directory)
    killed = start(trainers, directory, *THIRTY, write_s=write_s, sync_s=sync_s)
    until(lambda: list(directory.glob(".checkpoint_20.*")), every_s=0.001)
    if sync_s:
        until(lambda: trains_and_saves(directory), every_s=0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=600)
    assert events(directory, "saved") == []
    assert len(list(directory.glob(".checkpoint_20.*"))) == 1
    again = start(trainers, directory, *THIRTY)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert "left by a save that was killed" in output
    assert "resumed from checkpoint_10.safetensors" in output
    one, other = (load(place / "checkpoint_30.safetensors").snapshot.tensors for place in (unbroken, directory))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(directory.glob(".checkpoint*"))


def test_a_faulty_disk_costs_checkpoints_and_not_the_run_and_is_an_error_at_its_end(
    trainers: Trainers, tmp_path: Path
) -> None:
    flags = (*QUICK, "--max-steps", "5", "--save-interval", "2", "--eval-interval", "100000")
    process = start(trainers, tmp_path, *flags, limit=FAULTY)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert progress_of(tmp_path).step == 5  # type: ignore[union-attr]
    for step in (2, 4):
        assert f"WARNING: cannot save {tmp_path}/checkpoint_{step}.safetensors: input/output error; training" in output
    assert [event["step"] for event in events(tmp_path, "save failed")] == [2, 4, 5]
    assert output.count(f"cannot save {tmp_path}/checkpoint_5.safetensors: input/output error") >= 1
    assert "Traceback" not in output
    assert newest_valid(tmp_path, print) is None
    assert not list(tmp_path.glob(".checkpoint*"))


def test_a_limit_on_the_size_of_files_is_told_before_anything_is_trained_and_older_checkpoints_stand(
    trainers: Trainers, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copy(unbroken / "checkpoint_10.safetensors", tmp_path)
    kept = (tmp_path / "checkpoint_10.safetensors").read_bytes()
    process = start(trainers, tmp_path, *THIRTY, limit=1 << 20)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "a file may take 1.0 MB" in output
    assert "next: raise the file size limit of 1,048,576 bytes (ulimit -f)" in output
    assert "Traceback" not in output
    beat = progress_of(tmp_path)
    assert beat is None or beat.step <= 10, "nothing was trained in vain"
    assert (tmp_path / "checkpoint_10.safetensors").read_bytes() == kept
    assert not list(tmp_path.glob(".checkpoint*"))
    assert events(tmp_path, "saving") == []
