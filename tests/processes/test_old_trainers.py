"""The first trainers' PID-file lock and ours exclude each other, both ways."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import solorun
from tests.processes.conftest import until

OLD = [sys.executable, str(Path(__file__).with_name("old_trainer.py"))]
ROUNDS = 10


class Old:
    """One old-style trainer."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen([*OLD, str(directory), "600"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def olds() -> Iterator[list[Old]]:
    started: list[Old] = []
    yield started
    for old in started:
        old.end()


def test_while_an_old_trainer_holds_ours_refuses_and_names_it(tmp_path: Path, olds: list[Old]) -> None:
    olds.append(Old(tmp_path))
    assert olds[0].said == "acquired"
    for _ in range(ROUNDS):
        with pytest.raises(solorun.Held) as refused, solorun.hold(tmp_path, settle_s=0):
            pass
        assert f"PID {olds[0].process.pid}" in refused.value.what
    assert (tmp_path / "training.lock").read_text() == f"{olds[0].process.pid}\n"


def test_while_ours_holds_an_old_trainer_refuses(tmp_path: Path, olds: list[Old]) -> None:
    with solorun.hold(tmp_path):
        for _ in range(ROUNDS):
            olds.append(Old(tmp_path))
            assert olds[-1].said == "another training process is running"
    assert not (tmp_path / "training.lock").exists()


def test_after_an_old_trainer_was_killed_ours_takes_over_with_no_hand(tmp_path: Path, olds: list[Old]) -> None:
    for _ in range(ROUNDS):
        olds.append(Old(tmp_path))
        assert olds[-1].said == "acquired"
        olds[-1].end()
        with solorun.hold(tmp_path, settle_s=0):
            assert (tmp_path / "training.lock").read_text().strip().isdigit()


def test_after_ours_was_killed_an_old_trainer_takes_over(tmp_path: Path, olds: list[Old]) -> None:
    script = (
        "import solorun, sys, time\nwith solorun.hold(sys.argv[1]):\n    print('held', flush=True); time.sleep(600)"
    )
    ours = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    assert ours.stdout.readline() == "held\n"
    ours.kill()
    ours.communicate()
    olds.append(Old(tmp_path))
    assert olds[-1].said == "acquired"


def test_after_a_by_hand_rm_on_a_live_run_the_label_is_back_before_a_person_could_start(
    tmp_path: Path, olds: list[Old]
) -> None:
    with solorun.hold(tmp_path) as run:
        for _ in range(ROUNDS):
            (tmp_path / "training.lock").unlink()
            until(lambda: (tmp_path / "training.lock").exists())
            olds.append(Old(tmp_path))
            assert olds[-1].said == "another training process is running"
        assert not run.should_stop


def test_an_old_trainer_that_overwrites_the_label_of_a_live_run_is_a_conflict_and_stops_ours(
    tmp_path: Path,
) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        with solorun.hold(tmp_path, exit_on_stop=False) as run:
            (tmp_path / "training.lock").write_text(f"{sleeper.pid}\n")
            until(lambda: run.should_stop)
            assert "old-style" in run.stop_reason
        assert (tmp_path / "training.lock").read_text() == f"{sleeper.pid}\n"
        assert "CONFLICT" in (tmp_path / "training.log").read_text()
    finally:
        sleeper.kill()
        sleeper.wait()
