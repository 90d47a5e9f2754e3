"""Real trainers on a real disk that fills up: they pause, say so, are stopped or killed meanwhile, and lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kssm.checkpoint import load, newest_valid
from kssm.reserve import NAME
from solorun import process
from solorun.owner import Alive
from tests.guard.stage import label_of
from tests.processes.conftest import QUICK, Trainers, progress_of, until
from tests.processes.test_graceful_stop import stop
from tests.processes.test_torchrun import torchrun

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs a small tmpfs, which only root may mount, on Linux"
)

FLAGS = (*QUICK, "--save-interval", "20", "--eval-interval", "100000", "--log-interval", "20", "--keep", "1")
STEPS = "500"


class SmallDisk:
    """A file system of 24 MiB: five checkpoints of the tiny model."""

    def __init__(self, place: Path) -> None:
        self.place, self.filler = place, place / "somebody's film"
        place.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], check=False)
        if made.returncode:
            pytest.skip("no tmpfs can be mounted here")

    def fill_between_saves(self, directory: Path) -> None:
        """Leave not one block, while the run in there stands still between two saves.

        In the midst of one this would take what the reserve gives back, or a pruned checkpoint would make room again.
        """
        pid = label_of(directory)
        while True:
            os.kill(pid, signal.SIGSTOP)
            try:
                until(lambda: is_suspended(pid))
                beat = progress_of(directory)
                if beat is not None and beat.phase == "training" and (directory / NAME).exists():
                    self._fill()
                    return
            finally:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)

    def _fill(self) -> None:
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def clear(self) -> None:
        """Give it all back."""
        self.filler.unlink()

    def end(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "small disk")
    yield made
    made.end()


def background(trainers: Trainers, directory: Path, *flags: str) -> None:
    """`solorun start --background` of such a trainer; returns once it goes on by itself."""
    trainer = [sys.executable, "-m", "kssm", "train", "v3", *FLAGS, *flags, "--output-dir", str(directory)]
    started = trainers.spawn([sys.executable, "-m", "solorun", "start", str(directory), "--background", "--", *trainer])
    said, _ = started.communicate(timeout=600)
    assert started.returncode == 0, said


def events_safely(directory: Path, *names: str) -> list[dict[str, object]]:
    """The journal's events; a line that the full disk has cut is passed over, as every reader does."""
    found = []
    for line in (directory / "events.jsonl").read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] in names:
            found.append(event)
    return found


def is_suspended(pid: int) -> bool:
    seen = process.probe(pid)
    return isinstance(seen, Alive) and seen.state == "T"


def is_paused(directory: Path) -> bool:
    beat = progress_of(directory)
    return beat is not None and beat.phase == "paused:-disk-full"


def row_of(directory: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "solorun", "status", str(directory), "--json"]
    (row,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["runs"]
    return row  # type: ignore[no-any-return]


def is_over(directory: Path) -> bool:
    return not (directory / "training.lock").exists()


def newest(directory: Path) -> int:
    found = newest_valid(directory, lambda _line: None)
    assert found is not None
    return found.snapshot.facts.state.step


def test_a_run_pauses_on_a_full_disk_is_killed_stopped_and_goes_on_and_ends_with_the_bits_of_one_that_had_room(
    trainers: Trainers, disk: SmallDisk, tmp_path: Path
) -> None:
    whole = trainers.start(*FLAGS, "--max-steps", STEPS, "--output-dir", str(tmp_path / "whole"))
    directory = disk.place / "run"
    directory.mkdir()

    background(trainers, directory, "--max-steps", STEPS)
    until(lambda: (directory / NAME).exists(), 300)
    disk.fill_between_saves(directory)
    until(lambda: is_paused(directory), 300)
    saved = newest(directory)
    row = row_of(directory)
    assert (row["state"], row["phase"], row["step"]) == ("running", "paused:-disk-full", saved)
    assert not (directory / NAME).exists(), "its room holds the state now"
    assert "PAUSED: cannot save" in (directory / "training.log").read_text()
    pid = row["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_over(directory), 30)
    assert newest(directory) == saved
    disk.clear()

    background(trainers, directory, "--max-steps", STEPS)
    until(lambda: (directory / NAME).exists(), 300)
    disk.fill_between_saves(directory)
    until(lambda: is_paused(directory), 300)
    saved = newest(directory)
    said = stop(directory, "--json")
    assert json.loads(said.stdout)["result"] == "stopped", "within its grace, though there is no room"
    assert json.loads((directory / "run.json").read_text())["exit_code"] in (130, 143)
    assert newest(directory) == saved == progress_of(directory).step  # type: ignore[union-attr]
    disk.clear()

    background(trainers, directory, "--max-steps", STEPS)
    until(lambda: (directory / NAME).exists(), 300)
    disk.fill_between_saves(directory)
    until(lambda: is_paused(directory), 300)
    disk.clear()
    until(lambda: is_over(directory), 300)
    assert json.loads((directory / "run.json").read_text())["state"] == "completed"
    assert len(events_safely(directory, "went on")) == 1
    assert not (directory / NAME).exists()
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    one, other = (load(place / f"checkpoint_{STEPS}.safetensors").snapshot for place in (tmp_path / "whole", directory))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_ranks_wait_with_rank_0_on_a_full_disk_and_go_on_together(trainers: Trainers, disk: SmallDisk) -> None:
    directory = disk.place / "two"
    directory.mkdir()
    together = torchrun(trainers, directory, *FLAGS[len(QUICK) :], "--max-steps", "400")
    until(lambda: (directory / NAME).exists(), 300)
    disk.fill_between_saves(directory)
    until(lambda: is_paused(directory), 300)
    assert newest(directory) == progress_of(directory).step  # type: ignore[union-attr]
    disk.clear()
    output, _ = together.communicate(timeout=600)
    assert together.returncode == 0, output
    assert output.count("PAUSED: cannot save") == 1, "rank 0 alone speaks"
    assert newest(directory) == 400
