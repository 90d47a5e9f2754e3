"""The keeper: label and directory stay in place while a run lives, and a lost directory is told."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import dirwatch, keeper, process
from solorun.keeper import Keeper
from solorun.lock import DirectoryLock, enter
from solorun.owner import Owner, encode_owner

from .stage import Spawner, a_dead_pid, label_of, names, owner_of, wait_until


class Told:
    """Remembers what the keeper tells."""

    def __init__(self) -> None:
        self.restorations = 0
        self.adoptions: list[Owner] = []
        self.troubles: list[str] = []
        self.conflicts: list[str] = []

    def restored(self) -> None:
        self.restorations += 1

    def adopted(self, owner: Owner) -> None:
        self.adoptions.append(owner)

    def troubled(self, reason: str) -> None:
        self.troubles.append(reason)

    def conflict(self, reason: str) -> None:
        self.conflicts.append(reason)


class Kept:
    """A held and published directory with its keeper."""

    def __init__(self, results: Path) -> None:
        found = enter(results, settle_s=0)
        assert isinstance(found, DirectoryLock)
        self.lock = found
        self.owner = owner_of(results, process.identify_self())
        assert found.publish(self.owner) is None
        self.told = Told()
        self.keeper = Keeper(found, lambda: self.owner, self.told)


@pytest.fixture
def kept(results: Path) -> Iterator[Kept]:
    """With the keeper's thread running."""
    one = Kept(results)
    one.keeper.start()
    yield one
    one.keeper.dismiss()
    one.lock.release()


@pytest.fixture
def quiet(results: Path) -> Iterator[Kept]:
    """Without the thread: looks when it is told to."""
    one = Kept(results)
    yield one
    one.lock.release()


def test_a_label_deleted_by_hand_is_back_at_once(kept: Kept, results: Path) -> None:
    took = []
    for _ in range(20):
        began = time.monotonic()
        (results / "training.lock").unlink()
        while not (results / "training.lock").exists() and time.monotonic() < began + 20:
            time.sleep(0.0005)
        took.append(time.monotonic() - began)
        assert label_of(results) == os.getpid()
        wait_until(kept.lock.label_is_ours)
    wait_until(lambda: kept.told.restorations == 20)
    print(f"label back after {sorted(took)[10] * 1e3:.1f} ms (median), {max(took) * 1e3:.1f} ms (worst of 20)")
    assert kept.told.conflicts == []


def test_a_record_deleted_with_the_label_is_back_too(kept: Kept, results: Path) -> None:
    (results / "training.owner.json").unlink()
    (results / "training.lock").unlink()
    wait_until(lambda: names(results) >= {"training.lock", "training.owner.json"})
    assert kept.told.conflicts == []


def test_a_label_renamed_by_hand_is_back(kept: Kept, results: Path) -> None:
    (results / "training.lock").rename(results / "aside")
    wait_until(lambda: label_of(results) == os.getpid())
    assert kept.told.conflicts == []


def test_where_there_is_no_watch_the_label_is_back_within_the_poll(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "watch", lambda _fd: dirwatch._Polling())
    one = Kept(results)
    one.keeper.start()
    (results / "training.lock").unlink()
    wait_until(lambda: label_of(results) == os.getpid())
    one.keeper.dismiss()
    one.lock.release()


@pytest.mark.parametrize("text", [b"", b"hello\n", b"0\n", b"12\n34\n", b"\0\0", b"x" * 5000])
def test_a_garbage_label_is_replaced(quiet: Kept, results: Path, text: bytes) -> None:
    (results / "training.lock").write_bytes(text)
    quiet.keeper.look()
    assert label_of(results) == os.getpid()
    assert (quiet.told.restorations, quiet.told.conflicts) == (1, [])


def test_a_label_of_a_dead_process_is_replaced(quiet: Kept, results: Path) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    quiet.keeper.look()
    assert label_of(results) == os.getpid()
    assert (quiet.told.restorations, quiet.told.conflicts) == (1, [])


def test_a_dangling_link_in_the_labels_place_is_replaced(quiet: Kept, results: Path) -> None:
    (results / "training.lock").unlink()
    (results / "training.lock").symlink_to("nothing")
    quiet.keeper.look()
    assert label_of(results) == os.getpid()
    assert quiet.told.conflicts == []


def test_a_live_stranger_in_the_label_is_a_conflict_told_once(kept: Kept, results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getppid()}\n")
    wait_until(lambda: kept.told.conflicts)
    assert f"PID {os.getppid()}" in kept.told.conflicts[0]
    kept.keeper.look()
    assert len(kept.told.conflicts) == 1
    assert label_of(results) == os.getppid()
    kept.lock.release()
    assert names(results) == {"training.lock"}


def test_a_label_that_is_a_link_to_a_live_strangers_is_a_conflict(quiet: Kept, results: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(f"{os.getppid()}\n")
    (results / "training.lock").unlink()
    (results / "training.lock").symlink_to(tmp_path / "theirs")
    quiet.keeper.look()
    assert len(quiet.told.conflicts) == 1


def test_a_moved_directory_is_a_conflict_and_the_release_is_still_right(kept: Kept, results: Path) -> None:
    moved = results.with_name("moved")
    results.rename(moved)
    wait_until(lambda: kept.told.conflicts)
    assert str(moved) in kept.told.conflicts[0]
    kept.keeper.dismiss()
    kept.lock.release()
    assert names(moved) == set()


def test_a_directory_moved_by_a_parent_is_a_conflict_too(quiet: Kept, results: Path) -> None:
    results.parent.rename(results.parent.with_name("elsewhere"))
    quiet.keeper.look()
    assert "elsewhere/mine" in quiet.told.conflicts[0]


def test_a_deleted_directory_is_a_conflict(kept: Kept, results: Path) -> None:
    def delete() -> bool:  # the keeper may put the label back between the deletion of the file and of the directory
        shutil.rmtree(results, ignore_errors=True)
        return not results.exists()

    wait_until(delete)
    wait_until(lambda: kept.told.conflicts)
    assert "deleted" in kept.told.conflicts[0]


def test_a_directory_deleted_in_the_middle_of_a_look_is_a_conflict(
    kept: Kept, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(_owner: Owner) -> bool:
        shutil.rmtree(results)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(kept.lock, "restore_label", restore)
    (results / "training.lock").unlink()
    wait_until(lambda: kept.told.conflicts)
    assert "deleted" in kept.told.conflicts[0]


def test_on_a_full_disk_it_looks_once_a_second_and_not_without_a_pause(
    quiet: Kept, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def full(_owner: Owner) -> bool:
        tries.append(time.monotonic())
        (results / f"file-{len(tries)}").touch()  # which the watch of the directory hears
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(quiet.lock, "restore_label", full)
    (results / "training.lock").unlink()
    quiet.keeper.start()
    wait_until(lambda: len(tries) >= 2)
    quiet.keeper.dismiss()
    assert tries[1] - tries[0] > 0.9 * keeper.LOOK_EVERY_S
    assert quiet.told.troubles == [os.strerror(errno.ENOSPC)]


def test_another_directory_in_the_old_place_is_a_conflict_and_stays_untouched(kept: Kept, results: Path) -> None:
    results.rename(results.with_name("moved"))
    results.mkdir()
    wait_until(lambda: kept.told.conflicts)
    assert names(results) == set()


def test_a_process_of_the_same_run_in_label_and_record_is_an_adoption(
    spawn: Spawner, quiet: Kept, results: Path
) -> None:
    child = spawn.python("import time; time.sleep(600)")
    other = process.identify(child.pid)
    assert other is not None
    theirs = replace(quiet.owner, process=other)
    (results / "training.owner.json").write_bytes(encode_owner(theirs))
    (results / "training.lock").write_text(f"{child.pid}\n")
    quiet.keeper.look()
    assert quiet.told.adoptions == [theirs]
    assert quiet.told.conflicts == []
    assert quiet.lock.label_is_ours()


def test_a_hand_over_between_two_processes_of_the_run_is_no_conflict(
    spawn: Spawner, quiet: Kept, results: Path
) -> None:
    quiet.owner = replace(quiet.owner, run_id=f"run-{spawn.mark}")
    sleeper = "import time; print('up', flush=True); time.sleep(600)"
    child = spawn.python(sleeper, env={"SOLORUN_RUN_ID": quiet.owner.run_id})
    child.wait_for("up")
    (results / "training.lock").write_text(f"{child.pid}\n")  # the record already names another of the run
    quiet.keeper.look()
    assert quiet.told.conflicts == []
    assert label_of(results) == child.pid


def test_a_process_of_another_run_in_label_and_record_is_a_conflict(spawn: Spawner, quiet: Kept, results: Path) -> None:
    child = spawn.python("import time; time.sleep(600)")
    other = process.identify(child.pid)
    assert other is not None
    theirs = replace(quiet.owner, process=other, run_id="20260101-000000-bbbbbbbb")
    (results / "training.owner.json").write_bytes(encode_owner(theirs))
    (results / "training.lock").write_text(f"{child.pid}\n")
    quiet.keeper.look()
    assert len(quiet.told.conflicts) == 1


def test_our_own_pid_in_a_new_label_is_no_stranger_where_the_record_was_deleted(quiet: Kept, results: Path) -> None:
    (results / "training.owner.json").unlink()
    (results / "aside").write_text(f"{os.getpid()}\n")  # as an editor saves a file
    (results / "aside").rename(results / "training.lock")
    quiet.keeper.look()
    assert quiet.told.conflicts == []
    assert quiet.lock.label_is_ours()


def test_changing_the_label_through_the_keeper_is_no_attack(kept: Kept, results: Path) -> None:
    for _ in range(50):
        assert kept.keeper.relabel(kept.owner)
    assert (kept.told.conflicts, kept.told.restorations) == ([], 0)
    assert label_of(results) == os.getpid()


def test_after_dismissal_nothing_is_put_back(kept: Kept, results: Path) -> None:
    kept.keeper.dismiss()
    (results / "training.lock").unlink()
    kept.keeper.look()
    assert label_of(results) == 0


def test_a_dismissed_keeper_leaves_no_descriptor(results: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    one = Kept(results)
    one.keeper.start()
    one.keeper.dismiss()
    one.lock.release()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_forked_child_neither_waits_for_the_thread_nor_closes_its_watch(kept: Kept, results: Path) -> None:
    pid = os.fork()
    if pid == 0:
        kept.keeper.dismiss()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    (results / "training.lock").unlink()
    wait_until(lambda: label_of(results) == os.getpid())


def test_a_keeper_with_thousands_of_open_files_beside_it_still_keeps(results: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        one = Kept(results)
        one.keeper.start()
        for _ in range(3):
            (results / "training.lock").unlink()
            wait_until(lambda: label_of(results) == os.getpid())
        one.keeper.dismiss()
        one.lock.release()
    finally:
        for number in many:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
