"""A disk that refuses: full, faulty, read-only. Nothing stays locked, nobody loses a directory, and it is said."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import solorun
from solorun import waiting
from solorun.errors import DirectoryProblem, directory_problem
from solorun.rundir import LABEL, OWNER, PRIVATE
from tests.guard.stage import Spawner, events, label_of, names, wait_until


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], None]]:
    """Let a call fail where its arguments name a file; what comes back ends that."""

    def begin(call: str, number: int, name: str) -> Callable[[], None]:
        real = getattr(os, call)
        over: list[bool] = []

        def refused(path: Any, *more: Any, **named: Any) -> Any:
            if not over and name in (path, *more):
                raise OSError(number, os.strerror(number), path)
            return real(path, *more, **named)

        monkeypatch.setattr(os, call, refused)
        return lambda: over.append(True)

    return begin


LEAVES_A_LABEL = """
    import os, sys, solorun
    with solorun.hold(sys.argv[1], settle_s=0):
        def refused(path, **named):
            raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])), path)
        os.unlink = refused
"""


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_a_label_that_cannot_be_removed_is_told_and_locks_nobody_out(
    number: int, results: Path, spawn: Spawner
) -> None:
    trainer = spawn.python(LEAVES_A_LABEL, results, str(number))
    assert trainer.wait() == 0
    assert f"training.lock in {str(results)!r} cannot be removed: {os.strerror(number)}" in trainer.text()
    assert "the next start clears it" in trainer.text()
    assert trainer.text().strip() in (results / "training.log").read_text()
    assert label_of(results) == trainer.pid
    assert spawn.solorun("start", results, "--", "true").wait() == 0
    assert not {LABEL, OWNER} & names(results)


def test_a_start_that_fails_leaves_nothing_open_and_its_program_may_try_again(results: Path, refuse: Any) -> None:
    before = _open_files()
    full = refuse("rename", errno.ENOSPC, "run.json")
    with pytest.raises(DirectoryProblem, match="No space left"), solorun.hold(results, settle_s=0):
        pytest.fail("it must not begin")
    assert _open_files() == before
    full()
    with solorun.hold(results, settle_s=0):
        assert label_of(results) == os.getpid()


def test_a_start_that_fails_and_cannot_tidy_up_leaves_nothing_open_either(results: Path, refuse: Any) -> None:
    before = _open_files()
    refuse("unlink", errno.EIO, LABEL)
    refuse("rename", errno.ENOSPC, "run.json")
    with pytest.raises(DirectoryProblem, match="No space left"), solorun.hold(results, settle_s=0):
        pytest.fail("it must not begin")
    assert _open_files() == before, "an open directory stays locked as long as this process lives"


def _open_files() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EINTR])
def test_a_label_that_cannot_be_read_for_a_moment_is_no_conflict(number: int, results: Path, refuse: Any) -> None:
    with solorun.hold(results, settle_s=0) as run:
        mended = refuse("open", number, LABEL)
        (results / "anything").touch()
        run.progress(1, 2)
        os.rename(results / "anything", results / "moved")  # wakes the keeper
        wait_until(lambda: "cannot look after training.lock" in (results / "training.log").read_text())
        assert not run.should_stop
        mended()
        (results / LABEL).unlink()
        wait_until(lambda: label_of(results) == os.getpid())
        assert not run.should_stop
    assert "conflict" not in events(results)


def test_a_full_disk_that_keeps_a_label_from_being_put_back_does_not_stop_the_run(results: Path, refuse: Any) -> None:
    with solorun.hold(results, settle_s=0) as run:
        refused = [refuse(call, errno.ENOSPC, name) for call, name in (("open", "."), ("link", LABEL))]
        (results / LABEL).unlink()
        wait_until(lambda: "No space left" in (results / "training.log").read_text())
        assert not run.should_stop
        for mended in refused:
            mended()
        wait_until(lambda: label_of(results) == os.getpid())
    assert "conflict" not in events(results)


def test_every_refusal_of_the_system_comes_with_a_next_step() -> None:
    assert all(directory_problem(OSError(number, ""), "use", "here").next_step for number in errno.errorcode)


def test_half_a_ticket_of_a_killed_start_is_cleared_when_it_is_old(results: Path) -> None:
    ticket = waiting.join(results, ("train",), 0.0)
    half = results / "waiting" / f"{PRIVATE}1.1.tmp"
    half.write_bytes(b'{"schema": 1, "he')
    waiting.sweep(results)
    assert half.exists()
    os.utime(half, (0, 0))
    ticket.leave()
    assert not (results / "waiting").exists()


def test_an_archive_that_is_cut_short_leaves_the_newest_checkpoint_where_it_is(results: Path, refuse: Any) -> None:
    for step in (5, 10, 15):
        (results / f"checkpoint_{step}.state").touch()
    with solorun.hold(results, settle_s=0) as run:
        refuse("rename", errno.EIO, results / "checkpoint_10.state")
        with pytest.raises(DirectoryProblem, match="Input/output error"):
            run.archive(("checkpoint_*",))
    assert {name for name in names(results) if name.startswith("checkpoint_")} == {
        "checkpoint_10.state", "checkpoint_15.state",
    }  # fmt: skip


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_journal_that_cannot_be_read_gets_no_second_end_of_a_run(number: int, results: Path, refuse: Any) -> None:
    with solorun.hold(results, settle_s=0):
        pass
    mended = refuse("open", number, "events.jsonl")
    with solorun.hold(results, settle_s=0):
        mended()
    with solorun.hold(results, settle_s=0):
        pass
    lines = map(json.loads, (results / "events.jsonl").read_text().splitlines())
    ends = [line["run_id"] for line in lines if line["event"] == "ended"]
    assert len(ends) == len(set(ends)) == 3
