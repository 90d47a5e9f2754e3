"""What is kept of quiet directories never shows: with it, without it, and with it spoiled, a status says the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solorun import process, quiet, status
from solorun.owner import Alive, encode_owner
from solorun.process import RUN_ID_VARIABLE
from solorun.progress import Heartbeat
from solorun.record import RunRecord, ended, write_record
from solorun.settings import Settings
from solorun.status import MANY

from .stage import HOLDING, Spawner, a_dead_pid, as_nobody, owner_of

SETTINGS = Settings()
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever disk the tests run on, it counts as one of this machine's own."""
    monkeypatch.setattr(process.system, "mounts", lambda: [("/", "ext4")])


def run_of(number: int) -> str:
    """A run's id of this process alone: who tests beside it looks at the same process table."""
    return f"20260101-{os.getpid()}-{number:08x}"


def make_run(path: Path, run_id: str, *, label: int | None = None) -> None:
    """A directory as an ended run leaves it; with a label, as a killed old-style one does."""
    path.mkdir(parents=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        beat = Heartbeat(fd, run_id)
        beat.claim()
        beat.advance(90, 100)
        beat.close()
        record = RunRecord(run_id, None, ("python3", "train.py"), "ada", "studio", 42, time.time() - 60)
        write_record(fd, ended(record, "completed", time.time(), exit_code=0, signal=None, why=""))
    finally:
        os.close(fd)
    (path / "training.log").write_text("step 90\n")
    for step in (50, 90):
        (path / f"checkpoint_{step}.safetensors").write_bytes(b"weights")
    if label is not None:
        (path / "training.lock").write_text(f"{label:07}\n")  # so that any other PID has as many digits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Enough directories for something to be kept: every second one with a stale label, one with folders in it."""
    place, dead = tmp_path / "root", a_dead_pid()
    for n in range(MANY + 4):
        make_run(place / f"run{n:02}", run_of(n), label=dead if n % 2 else None)
    (place / "run00" / "plots" / "new").mkdir(parents=True)
    return place


def told(root: Path | str, state: Path | str, now: float) -> list[dict[str, Any]]:
    """The rows, less the memory of processes that live: two looks at it differ."""
    rows = status.rows([root], now, SETTINGS, str(state))
    return [{name: value for name, value in row.items() if name != "memory_bytes"} for row in rows]


def later() -> float:
    """A time at which nothing counts as just written."""
    return time.time() + 60


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the directories that were really looked at."""
    names: list[str] = []
    gather = status.gather

    def note(directory: Any, *more: Any) -> Any:
        names.append(os.path.basename(directory))
        return gather(directory, *more)

    monkeypatch.setattr(status, "gather", note)
    return names


def test_directories_that_have_not_changed_are_not_looked_into_again(
    root: Path, state: Path, looked_at: list[str]
) -> None:
    now = later()
    first = told(root, state, now)
    assert len(looked_at) == MANY + 4
    looked_at.clear()
    again = told(root, state, now)
    assert looked_at == []
    assert again == first == told(root, "", now)
    assert {row["state"] for row in first} == {"idle", "stale"}
    assert [list(row) for row in again] == [list(row) for row in first]
    json.dumps(again)


def test_ages_go_on(root: Path, state: Path, looked_at: list[str]) -> None:
    now = later()
    told(root, state, now)
    looked_at.clear()
    aged = told(root, state, now + 1000)
    assert looked_at == []
    assert aged == told(root, "", now + 1000)
    assert min(row["log_age_s"] for row in aged) > 1000


def overwrite(path: Path, data: bytes) -> None:
    """Write over a file in place, and put its times back: only its time of change tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data.ljust(before.st_size, b" ")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def date_back(path: Path) -> None:
    os.utime(path, (1.0, 1.0))


def replace_directory(path: Path, other: str) -> None:
    path.rename(path.with_name("aside"))
    shutil.copytree(path.with_name("aside"), path)
    (path / "training.log").write_text(other)


def add_waiting(path: Path) -> None:
    (path / "waiting").mkdir()
    (path / "waiting" / "1.json").write_text("{}")


def put_owner(path: Path) -> None:
    (path / "training.owner.json").write_bytes(encode_owner(owner_of(path, process.identify_self())))


def link_newest(path: Path) -> None:
    (path / "checkpoint_90.safetensors").rename(path / "kept")
    (path / "checkpoint_90.safetensors").symlink_to("kept")


CHANGES: dict[str, Change] = {
    "a live label where there was none": lambda p: (p / "training.lock").write_text(f"{os.getppid()}\n"),
    "a dead label where there was none": lambda p: (p / "training.lock").write_text(f"{a_dead_pid()}\n"),
    "an empty label": lambda p: (p / "training.lock").write_text(""),
    "a label that is a link": lambda p: (p / "training.lock").symlink_to("training.log"),
    "a record of a live owner": put_owner,
    "somebody waits": add_waiting,
    "the record is written over in place": lambda p: overwrite(p / "run.json", b"{}"),
    "the record is removed": lambda p: (p / "run.json").unlink(),
    "the heartbeat is written over in place": lambda p: overwrite(p / "progress", b"torn"),
    "the heartbeat is removed": lambda p: (p / "progress").unlink(),
    "the log grows": lambda p: (p / "training.log").open("a").write("more\n"),
    "the log is dated back": lambda p: date_back(p / "training.log"),
    "the log is removed": lambda p: (p / "training.log").unlink(),
    "the log is a link to nothing": lambda p: ((p / "training.log").unlink(), (p / "training.log").symlink_to("no")),
    "a newer checkpoint": lambda p: (p / "checkpoint_91.pt").touch(),
    "the same step in another form": lambda p: (p / "checkpoint_90.pt").touch(),
    "the same step in an older form": lambda p: [(p / "checkpoint_90.pt").touch(), date_back(p / "checkpoint_90.pt")],
    "the newest checkpoint is dated back": lambda p: date_back(p / "checkpoint_90.safetensors"),
    "the newest checkpoint is a link": link_newest,
    "the newest checkpoint is removed": lambda p: (p / "checkpoint_90.safetensors").unlink(),
    "a run inside it": lambda p: make_run(p / "inner", "20260101-000000-bbbbbbbb"),
    "a run in a folder that was there": lambda p: make_run(p.parent / "run00" / "plots" / "new" / "x", "20260101-1"),
    "a run in place of a folder": lambda p: (p.parent / "run00" / "plots" / "training.log").touch(),
    "moved away": lambda p: p.rename(p.with_name("moved")),
    "replaced by another": lambda p: replace_directory(p, "other"),
    "replaced by a link": lambda p: (p.rename(p.with_name("moved")), p.symlink_to("moved")),
    "replaced by a file": lambda p: (shutil.rmtree(p), p.touch()),
    "removed": shutil.rmtree,
    "emptied": lambda p: [path.unlink() for path in p.iterdir() if path.is_file()],
    "a neighbour comes": lambda p: make_run(p.with_name("new"), "20260101-000000-cccccccc"),
}


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("which", ["run02", "run03"], ids=["idle", "stale"])
def test_every_change_is_seen_at_once(root: Path, state: Path, name: str, which: str) -> None:
    now = later()
    told(root, state, now)
    if which == "run03" and "label" in name:
        (root / which / "training.lock").unlink()
        told(root, state, now)
    CHANGES[name](root / which)
    seen = told(root, "", now)
    assert told(root, state, now) == seen
    assert told(root, state, now) == seen  # and so with what was learned meanwhile


def test_a_label_written_over_in_place_is_seen(root: Path, state: Path) -> None:
    now = later()
    told(root, state, now)
    overwrite(root / "run03" / "training.lock", f"{os.getppid():07}\n".encode())
    row = told(root, state, now)[3]
    assert (row["state"], row["pid"]) == ("running", os.getppid())


def test_any_sequence_of_changes_is_told_as_without_anything_kept(root: Path, state: Path) -> None:
    chance = random.Random(7)
    for number in range(30):
        now = later() if number % 3 else time.time()  # as time goes, what was just written is not to be kept
        places = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]
        name = chance.choice(list(CHANGES))
        try:
            CHANGES[name](chance.choice(places))
        except OSError:  # what it would change was taken away by an earlier one
            continue
        assert told(root, state, now) == told(root, "", now), name


def test_a_run_that_starts_lives_and_ends_is_told_at_every_point(root: Path, state: Path, spawn: Spawner) -> None:
    told(root, state, later())
    child = spawn.python(HOLDING, root / "run02")
    child.wait_for("holding")
    assert told(root, state, time.time())[2]["state"] == "running"
    child.signal(signal.SIGKILL)
    child.wait()
    found = told(root, state, later())[2]
    assert (found["state"], found["ended"]) == ("stale", "lost")
    child = spawn.python(HOLDING, root / "run02")
    child.wait_for("holding")
    child.signal(signal.SIGINT)
    child.wait()
    now = later()
    found = told(root, state, now)[2]
    assert (found["state"], found["ended"]) == ("idle", "interrupted")
    assert told(root, state, now)[2] == found


def test_a_process_of_a_run_that_is_over_is_an_orphan_though_no_file_has_changed(
    root: Path, state: Path, spawn: Spawner
) -> None:
    now = later()
    told(root, state, now)
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", env={RUN_ID_VARIABLE: run_of(2)})
    child.wait_for("up")
    seen = told(root, state, now)
    assert seen[2]["state"] == "orphaned"
    assert seen == told(root, "", now)


def test_a_stale_labels_number_that_lives_again_is_judged_anew(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = later()
    assert told(root, state, now)[3]["state"] == "stale"
    monkeypatch.setattr(process, "is_unused", lambda _pid: False)
    monkeypatch.setattr(process.system, "probe", lambda _pid: Alive(1, now - 10_000, "S"))
    assert told(root, state, now)[3]["state"] == "running"
    assert told(root, state, now) == told(root, "", now)


def test_nothing_is_kept_of_what_was_written_a_moment_ago(root: Path, state: Path, looked_at: list[str]) -> None:
    now = min(path.lstat().st_ctime for path in root.rglob("*")) + 1  # however long it took to write them all
    told(root, state, now)
    looked_at.clear()
    told(root, state, now)
    assert len(looked_at) == MANY + 4


def test_nothing_is_kept_on_a_disk_of_another_machine(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.system, "mounts", lambda: [("/", "nfs4")])
    told(root, state, later())
    assert not (state / quiet.PLACE).exists()


def test_few_directories_need_no_file(tmp_path: Path, state: Path) -> None:
    make_run(tmp_path / "root" / "only", "20260101-000000-aaaaaaaa")
    told(tmp_path / "root", state, later())
    assert not state.exists()


def kept_file(state: Path) -> Path:
    (file,) = (state / quiet.PLACE).iterdir()
    return file


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x40
    file.write_bytes(data)


def instead(file: Path, make: Callable[[Path], object]) -> None:
    file.rename(file.with_name("elsewhere"))
    make(file)


SPOILED: dict[str, Change] = {
    "empty": lambda f: f.write_bytes(b""),
    "only a head": lambda f: f.write_bytes(f.read_bytes().partition(b"\n")[0]),
    "cut short": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "doubled": lambda f: f.write_bytes(f.read_bytes() * 2),
    "one bit of the head": lambda f: flip(f, 3),
    "one bit in the middle": lambda f: flip(f, f.stat().st_size // 2),
    "one bit at the end": lambda f: flip(f, f.stat().st_size - 1),
    "garbage": lambda f: f.write_bytes(os.urandom(5000)),
    "for others to read": lambda f: f.chmod(0o644),
    "a directory": lambda f: instead(f, Path.mkdir),
    "a pipe": lambda f: instead(f, lambda path: os.mkfifo(path, 0o600)),
    "a link": lambda f: instead(f, lambda path: path.symlink_to("elsewhere")),
    "removed": Path.unlink,
    "the place is a file": lambda f: (shutil.rmtree(f.parent), f.parent.touch()),
    "the state directory is a file": lambda f: (shutil.rmtree(f.parents[1]), f.parents[1].touch()),
}


@pytest.mark.parametrize("name", list(SPOILED))
def test_a_spoiled_file_changes_no_answer(root: Path, state: Path, name: str) -> None:
    now = later()
    first = told(root, state, now)
    SPOILED[name](kept_file(state))
    assert told(root, state, now) == first
    assert told(root, state, now) == first


def test_a_spoiled_file_is_made_anew(root: Path, state: Path, looked_at: list[str]) -> None:
    now = later()
    told(root, state, now)
    kept_file(state).write_bytes(b"spoiled")
    told(root, state, now)
    looked_at.clear()
    told(root, state, now)
    assert looked_at == []


def test_another_users_file_is_not_believed(root: Path, state: Path, looked_at: list[str]) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    now = later()
    told(root, state, now)
    os.chown(kept_file(state), 12345, 12345)
    looked_at.clear()
    told(root, state, now)
    assert len(looked_at) == MANY + 4


def test_whoever_may_not_write_the_state_is_answered_all_the_same(open_results: Path) -> None:
    root = open_results.parent / "many"
    for n in range(MANY):
        make_run(root / f"run{n:02}", f"20260101-000000-{n:08x}")
    root.chmod(0o755)
    nowhere = open_results.parent / "state"
    nowhere.mkdir(mode=0o700)
    now = later()
    assert as_nobody(lambda: len(told(root, nowhere, now))) == MANY
    assert list(nowhere.iterdir()) == []


def test_the_files_are_private_and_those_not_written_for_long_are_swept(root: Path, state: Path) -> None:
    now = later()
    told(root, state, now)
    file = kept_file(state)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    old = file.with_name("old")
    old.touch()
    date_back(old)
    (root / "run02" / "training.log").unlink()
    told(root, state, now)
    assert kept_file(state) == file


def test_what_another_version_kept_is_not_used(root: Path, state: Path, looked_at: list[str]) -> None:
    now = later()
    told(root, state, now)
    looked_at.clear()
    status.rows([root], now, SETTINGS, str(state), "99")
    assert len(looked_at) == MANY + 4


@pytest.mark.parametrize("spelled", [".", "./", "../root", "../root/."])
def test_a_root_may_be_spelled_in_any_way(
    root: Path, state: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(root)
    now = later()
    first = told(spelled, state, now)
    looked_at.clear()
    assert told(spelled, state, now) == first == told(spelled, "", now)
    assert told(root, state, now) == told(root, "", now)
    assert len(looked_at) == 2 * (MANY + 4)  # by those without anything kept alone


def test_looking_changes_nothing_in_the_directories(root: Path, state: Path) -> None:
    def shape() -> list[tuple[str, int, int]]:
        return [(str(p), p.lstat().st_ctime_ns, p.lstat().st_size) for p in sorted(root.rglob("*"))]

    before = shape()
    told(root, state, later())
    told(root, state, later())
    assert shape() == before
