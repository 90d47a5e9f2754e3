"""A disk that refuses: full, faulty, read-only. Nothing stays locked, nobody loses a directory, and it is said."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import solorun
from solorun import process, waiting
from solorun.errors import DirectoryProblem, directory_problem
from solorun.lock import DirectoryLock, enter
from solorun.owner import Unknown
from solorun.rundir import LABEL, OWNER, PRIVATE
from tests.guard.stage import Spawner, events, label_of, names, owner_of, wait_until


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


FEW_FILES = """
    import os, resource, sys, solorun
    results, (_, most) = sys.argv[1], resource.getrlimit(resource.RLIMIT_NOFILE)
    with solorun.hold(results, settle_s=0):  # what is imported late, is now
        pass
    refused = 0
    for limit in range(3, 64):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
        try:
            with solorun.hold(results, settle_s=0):
                break
        except solorun.SolorunError as error:
            refused += 1
            assert error.exit_code in (1, 7) and error.next_step, error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
        assert not {"training.lock", "training.owner.json"} & set(os.listdir(results)), limit
        with solorun.hold(results, settle_s=0):
            pass
    assert refused > 3 and limit < 63
    print("never in the way of the next")
"""


def test_a_start_without_files_left_to_open_is_refused_in_words_and_leaves_nothing(
    results: Path, spawn: Spawner
) -> None:
    program = spawn.python(FEW_FILES, results)
    assert program.wait() == 0, program.text()
    assert "never in the way of the next" in program.text()


SHORT_FILES = """
    import os, resource, sys, solorun
    results, (_, most) = sys.argv[1], resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = held = 0
    for limit in range(0, 4000, 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            with solorun.hold(results, settle_s=0) as run:
                run.progress(1, 2, ce=1.5)
            held += 1
        except solorun.SolorunError as error:
            refused += 1
            assert "File too large" in error.what or "No space left" in error.what, error.what
            assert error.next_step
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        marks = (".solorun", "training.lock", "training.owner")
        left = [name for name in os.listdir(results) if name.startswith(marks)]
        assert not left, (limit, left)
    with solorun.hold(results, settle_s=0):
        pass
    assert refused and held, (refused, held)
    print("nothing is left of what was cut short")
"""


def test_real_short_writes_leave_no_label_no_private_file_and_no_line_joined_to_another(
    results: Path, spawn: Spawner
) -> None:
    program = spawn.python(SHORT_FILES, results)
    assert program.wait() == 0, program.text()
    ends = {}
    for line in (results / "events.jsonl").read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            assert line.startswith(b'{"schema": 1') and line.count(b'"schema"') == 1, (
                "half a line, and no second one in it"
            )
            continue
        if event["event"] in ("ended", "found dead"):
            ends[event["run_id"]] = ends.get(event["run_id"], 0) + 1
    assert set(ends.values()) == {1}


def test_a_command_that_cannot_be_looked_after_does_not_begin(results: Path, spawn: Spawner) -> None:
    no_more = spawn.program(
        "no_more.py",
        """
        import sys, threading
        from solorun.cli.main import main
        def refused(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refused
        sys.exit(main(["start", sys.argv[1], "--", "touch", sys.argv[1] + "/begun"]))
        """,
    )
    start = spawn(sys.executable, str(no_more), str(results))
    assert start.wait() == 1
    assert "cannot supervise a command in" in start.text()
    assert "ulimit -u" in start.text()
    assert not {"begun", LABEL, OWNER} & names(results)


def test_a_label_that_cannot_be_read_after_settling_is_not_called_another_trainers(results: Path, refuse: Any) -> None:
    mended: list[Any] = []
    lock = enter(results)
    assert isinstance(lock, DirectoryLock)
    assert lock.publish(owner_of(results, process.identify_self())) is None
    read = lock.settle(lambda _s: mended.append(refuse("open", errno.EIO, LABEL)))
    assert isinstance(read, Unknown), "it cannot be told, and is not called an old-style trainer's"
    mended[0]()
    lock.close()
