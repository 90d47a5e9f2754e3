"""Several processes train one run under torchrun: they agree when to stop, and whatever dies leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kssm.checkpoint import newest_valid
from solorun import process
from solorun.label import look
from solorun.owner import Held, ProcessId
from tests.guard.stage import label_of, whole_rows
from tests.processes.conftest import QUICK, ROOT, Trainers, free_port, progress_of, until

Ran = subprocess.Popen[str]
LONG = ("--max-steps", "100000", "--save-interval", "100000", "--eval-interval", "100000")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")


def torchrun(
    trainers: Trainers, directory: Path, *flags: str, launcher: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> Ran:
    """Two ranks of `kssm train v3` in this directory, in a session of their own."""
    words = (*TORCHRUN, "--nproc-per-node", "2", *launcher, "-m", "kssm", "train", "v3", *QUICK, *flags)
    return trainers.spawn([*before, *words, "--output-dir", str(directory)])


def by_hand(trainers: Trainers, directory: Path, *flags: str, program: tuple[str, ...] = ("-m", "kssm")) -> list[Ran]:
    """Two ranks without torchrun, which would end the one that is left and hide their exit codes."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, *program, "train", "v3", *QUICK, *flags, "--output-dir", str(directory)]
    return [trainers.spawn(command, env={**trainers.environment, **meeting, "RANK": rank}) for rank in ("0", "1")]


def ended(ranks: list[Ran]) -> tuple[list[int], list[str]]:
    """Exit codes and output."""
    said = [one.communicate(timeout=600)[0] for one in ranks]
    return [one.returncode for one in ranks], said


class Pack:
    """torchrun and its two ranks, once they train."""

    def __init__(self, torchrun: Ran, directory: Path) -> None:
        self.torchrun, self.directory = torchrun, directory
        until(self.trains, 240)
        launcher = process.identify(process.system.parent(label_of(directory)))
        assert launcher is not None
        self.launcher = launcher
        self.first = self.only(label_of(directory))
        self.second = next(one for one in process.descendants(launcher) if one != self.first)

    @staticmethod
    def only(pid: int) -> ProcessId:
        found = process.identify(pid)
        assert found is not None
        return found

    def trains(self) -> bool:
        assert self.torchrun.poll() is None, self.torchrun.communicate()[0]
        beat = progress_of(self.directory)
        if not (label_of(self.directory) and beat):
            return False
        found = look(self.directory)  # run.json and heartbeat may both still tell of the run before
        owner = found.owner if isinstance(found, Held) else None
        is_this_run = owner is not None and owner.run_id == beat.run_id == record(self.directory)["run_id"]
        return is_this_run and beat.phase == "training" and beat.step > beat.first_step

    def is_held(self) -> bool:
        return (self.directory / "training.lock").exists()

    def everybody(self) -> tuple[ProcessId, ...]:
        return (self.launcher, self.first, self.second)

    def living(self) -> list[ProcessId]:
        return [one for one in self.everybody() if process.is_alive(one)]

    def saved_once_and_let_go(self) -> int:
        """The step that was saved; the run has left nothing behind."""
        until(lambda: not self.living())
        assert not self.is_held()
        saved = [event for event in events(self.directory) if event["event"] == "saved"]
        assert len(saved) == 1
        found = newest_valid(self.directory, print)
        assert found is not None
        assert found.snapshot.facts.state.step == saved[0]["step"] == progress_of(self.directory).step  # type: ignore[union-attr]
        return int(saved[0]["step"])


def events(directory: Path) -> list[dict[str, Any]]:
    return whole_rows(directory / "events.jsonl")


def rows(directory: Path) -> list[dict[str, Any]]:
    return whole_rows(directory / "metrics.jsonl")


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return found


def solorun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solorun", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_two_ranks_learn_what_one_process_learns_save_once_when_interrupted_and_one_process_goes_on(
    trainers: Trainers, tmp_path: Path
) -> None:
    flags = (*LONG, "--gradient-accumulation", "2", "--log-interval", "1")
    pack = Pack(torchrun(trainers, tmp_path, *flags), tmp_path)
    until(lambda: len(rows(tmp_path)) > 8)
    pack.torchrun.send_signal(signal.SIGINT)
    output, _ = pack.torchrun.communicate(timeout=600)
    step = pack.saved_once_and_let_go()
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == ("interrupted", 130)
    assert output.count("K-SSM v3") == output.count("TRAINING INTERRUPTED") == 1  # rank 0 alone speaks
    alone = trainers.start(*QUICK, *flags, "--output-dir", str(tmp_path / "alone"))
    until(lambda: len(rows(tmp_path / "alone")) > 8)
    alone.send_signal(signal.SIGINT)
    alone.communicate(timeout=600)
    for two, one in zip(rows(tmp_path)[:8], rows(tmp_path / "alone")[:8], strict=True):
        assert two["tokens"] == one["tokens"]
        for name in ("loss", "ce", "reg", "R", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name  # gloo adds in another order
    onward = trainers.start(*QUICK, "--max-steps", str(step + 1), "--output-dir", str(tmp_path))
    said, _ = onward.communicate(timeout=600)
    assert onward.returncode == 0, said
    assert re.search(r"not bit for bit .*ranks 2 -> 1", said)


def test_a_signal_to_one_rank_alone_stops_all(trainers: Trainers, tmp_path: Path) -> None:
    first, second = by_hand(trainers, tmp_path, *LONG)
    until(lambda: (beat := progress_of(tmp_path)) is not None and beat.step > 1)
    second.send_signal(signal.SIGTERM)
    codes, said = ended([first, second])
    assert (codes, said[1]) == ([143, 143], "")
    assert record(tmp_path)["why"] == "SIGTERM: another rank was asked to stop"
    assert newest_valid(tmp_path, print).snapshot.facts.state.step == progress_of(tmp_path).step  # type: ignore[union-attr]


READS_SLOWLY = """
import os, sys, time
import kssm.corpus
from kssm.cli import main
true = kssm.corpus.prepare
def prepare(*words, **named):
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return true(*words, **named)
kssm.corpus.prepare = prepare
sys.exit(main())
"""
"""A trainer that reads its text only once there is a file of that name."""


def test_a_rank_that_leaves_before_the_group_is_formed_keeps_nobody_waiting(trainers: Trainers, tmp_path: Path) -> None:
    trainers.environment["GATE"] = str(tmp_path / "may read on")
    first, second = by_hand(trainers, tmp_path / "run", *LONG, program=("-c", READS_SLOWLY))
    until(lambda: (beat := progress_of(tmp_path / "run")) is not None and beat.phase == "tokenizing")
    second.send_signal(signal.SIGTERM)
    until(lambda: second.poll() is not None)  # it has told where they meet, and left
    (tmp_path / "may read on").touch()
    codes, said = ended([first, second])
    assert (codes, said[1]) == ([143, 143], "")
    assert "there is nothing to save" in said[0]
    assert (record(tmp_path / "run")["state"], label_of(tmp_path / "run")) == ("interrupted", 0)


ABORTS_IN_THE_TEARDOWN = """
import atexit, os, sys
atexit.register(os.abort)
from kssm.cli import main
sys.exit(main())
"""
"""What a thread of torch does now and then while Python is torn down; here it always does."""


def test_a_whole_run_ends_with_0_on_every_rank_whatever_would_abort_in_the_teardown(
    trainers: Trainers, tmp_path: Path
) -> None:
    codes, said = ended(by_hand(trainers, tmp_path, "--max-steps", "2", program=("-c", ABORTS_IN_THE_TEARDOWN)))
    assert (codes, said[1]) == ([0, 0], "")
    assert "TRAINING COMPLETE" in said[0]
    assert (record(tmp_path)["state"], label_of(tmp_path)) == ("completed", 0)


def test_ranks_restarted_after_a_kill_go_on_where_the_others_were_and_a_stop_is_the_end(
    trainers: Trainers, tmp_path: Path
) -> None:
    begun = torchrun(trainers, tmp_path, *LONG, launcher=("--max-restarts", "3"))
    pack = Pack(begun, tmp_path)
    process.send(pack.second, signal.SIGKILL)
    until(lambda: not any(map(process.is_alive, (pack.first, pack.second))))
    saved = newest_valid(tmp_path, print)  # what rank 0 had when it found itself alone
    assert saved is not None
    beat = progress_of(tmp_path)  # torchrun may have begun the next ones already, and they write their own
    assert beat is not None
    assert beat.run_id != saved.snapshot.facts.run_id or beat.step == saved.snapshot.facts.state.step
    until(
        lambda: saved.snapshot.facts.state.step in [e.get("step") for e in events(tmp_path) if e["event"] == "resumed"]
    )
    pack = Pack(begun, tmp_path)
    process.send(pack.first, signal.SIGKILL)
    until(lambda: not any(map(process.is_alive, (pack.first, pack.second))))
    until(lambda: label_of(tmp_path) not in (0, pack.first.pid))
    pack = Pack(begun, tmp_path)
    said = solorun("stop", str(tmp_path))
    assert said.returncode == 0, said.stderr
    assert not pack.living()  # proven when it returns, not a moment later
    assert not pack.is_held()
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == ("interrupted", 143)
    assert [event["event"] for event in events(tmp_path)].count("started") == 3  # and no fourth after the stop


def test_a_killed_torchrun_leaves_no_rank_behind_and_the_work_saved(trainers: Trainers, tmp_path: Path) -> None:
    pack = Pack(torchrun(trainers, tmp_path, *LONG), tmp_path)
    pack.torchrun.kill()
    pack.saved_once_and_let_go()
    assert "torchrun is gone" in record(tmp_path)["why"]


def test_under_a_guard_the_run_is_one_run_and_a_second_start_ends_whole(trainers: Trainers, tmp_path: Path) -> None:
    guard = (sys.executable, "-m", "solorun", "start", str(tmp_path), "--")
    pack = Pack(torchrun(trainers, tmp_path, *LONG, before=guard), tmp_path)
    codes, said = ended(by_hand(trainers, tmp_path, *LONG))
    assert (codes, said[0].count("is held by"), said[1]) == ([3, 3], 1, "")
    row = json.loads(solorun("status", "--json", str(tmp_path)).stdout)["runs"][0]
    assert (row["state"], row["pid"]) == ("running", pack.first.pid)
    assert solorun("stop", str(tmp_path)).returncode == 0
    pack.torchrun.communicate(timeout=600)
    assert pack.torchrun.returncode == 143  # what the trainer ended with, not the 1 that torchrun makes of it
    pack.saved_once_and_let_go()
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == ("interrupted", 143)


def test_a_mistake_is_told_once_and_ends_all_ranks(trainers: Trainers, tmp_path: Path) -> None:
    codes, said = ended(by_hand(trainers, tmp_path, "--batch-size", "3"))
    assert (codes, said[0].count("cannot be shared equally by 2 ranks"), said[1]) == ([2, 2], 1, "")
    assert label_of(tmp_path) == 0


FULL = """
import os, sys
import kssm.step
from kssm.cli import main
true, calls = kssm.step.objective, []
def objective(model, rows, *others):
    calls.append(len(rows))
    if os.environ["RANK"] == "1" and (len(rows) > 1 or len(calls) > 9):
        raise MemoryError
    return true(model, rows, *others)
kssm.step.objective = objective
sys.exit(main())
"""
"""A trainer whose rank 1 never has memory for two sequences, and at its tenth pass not even for one."""


def test_memory_that_is_full_on_one_rank_is_answered_by_all_and_never_hangs(trainers: Trainers, tmp_path: Path) -> None:
    codes, said = ended(by_hand(trainers, tmp_path, *LONG, "--batch-size", "4", program=("-c", FULL)))
    assert codes == [1, 1], said
    assert "out of memory with 2 sequences at a time; going on with 1" in said[0]
    assert re.fullmatch(r"kssm: rank 1: step 3: out of memory on rank 1 .*\n  next: .*\n", said[1])
    found = newest_valid(tmp_path, print)
    assert found is not None
    assert found.snapshot.facts.state.step == 3  # the whole steps that were made
    assert "Traceback" not in (tmp_path / "training.log").read_text()
    assert (record(tmp_path)["state"], label_of(tmp_path)) == ("crashed", 0)
