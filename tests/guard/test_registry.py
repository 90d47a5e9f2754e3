"""The registry of started runs: it knows every directory, and no start ever fails or waits because of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from solorun import kept, process, registry
from solorun.cli.main import main
from solorun.cli.places import without_repeats

from .stage import HOLDING, Spawner, as_nobody, names, wait_until

HERE = process.here().machine


def entry(directory: Path, run_id: str = "20260101-000000-aaaaaaaa", **more: Any) -> registry.Entry:
    facts = {"machine": HERE, "host": "studio", "user": "ada", "started": 1_800_000_000.0, "pid": 42, **more}
    return registry.Entry(run_id, directory, **facts)


def shown(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The directories that `status` shows when none is named."""
    capfd.readouterr()
    assert main(["status", "--json", *words]) == 0
    return [run["directory"] for run in json.loads(capfd.readouterr().out)["runs"]]


def listed(state: Path, machine: str) -> list[Path]:
    """The directories that `status` looks at when none is named."""
    found, problem = registry.started_in(state, machine)
    assert not problem
    return [*map(Path, without_repeats(found))]


@pytest.mark.parametrize(
    "name",
    ["plain", "two words", "it's", 'a "quote"', "new\nline", "-rf", "字", "\udcff\udcfe", "per%20cent?mode=ro#x"],
)
def test_a_directory_comes_back_whatever_its_name(state: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    assert registry.note(state, entry(path))
    assert listed(state, HERE) == [path]
    assert registry.read(state).entries == (entry(path),)


def test_the_state_directory_may_have_an_odd_name_and_is_private(tmp_path: Path, results: Path) -> None:
    state = tmp_path / "home?mode=memory" / "st#ate %41"
    assert registry.note(state, entry(results))
    assert names(state) == {"runs.db"}
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert listed(state, HERE) == [results]


def test_without_a_registry_nothing_is_known_and_nothing_is_made(state: Path) -> None:
    assert registry.read(state) == registry.Known(())
    assert not state.exists()


def test_vanished_directories_and_those_of_another_machine_are_remembered_but_not_listed(
    state: Path, tmp_path: Path
) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    registry.note(state, entry(here, "r1"), entry(gone, "r2"), entry(here, "r3", machine="other/5"))
    assert listed(state, HERE) == [here]
    assert listed(state, "other/5") == [here]
    assert {one.run_id for one in registry.read(state).entries} == {"r1", "r2", "r3"}


def test_an_end_is_added_and_not_wiped_out_by_a_later_note_of_the_start(state: Path, results: Path) -> None:
    registry.note(state, entry(results))
    done = entry(results, ended=1_800_000_060.0, outcome="completed", last_step=9)
    registry.note(state, done)
    registry.note(state, entry(results))
    assert registry.read(state).entries == (done,)


@pytest.mark.parametrize("garbage", [b"not a database" * 400, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(state: Path, results: Path, garbage: bytes) -> None:
    state.mkdir()
    (state / "runs.db").write_bytes(garbage)
    assert "cannot be read" in registry.read(state).problem
    assert registry.note(state, entry(results))
    assert listed(state, HERE) == [results]
    (aside,) = (path for path in state.iterdir() if "damaged" in path.name)
    assert aside.read_bytes() == garbage


def test_a_file_of_a_newer_version_is_passed_over_untouched_and_said(
    state: Path, results: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state.mkdir()
    with sqlite3.connect(state / "runs.db") as database:
        database.execute("CREATE TABLE runs (other TEXT)")
        database.execute("PRAGMA user_version = 2")
    database.close()
    before = (state / "runs.db").read_bytes()
    assert registry.note(state, entry(results))
    assert (state / "runs.db").read_bytes() == before
    assert main(["status"]) == 0
    assert "is of a newer version of solorun; only the roots were looked at" in capfd.readouterr().err


def test_a_locked_file_is_waited_for_a_moment_only(state: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.note(state, entry(results))
    other = sqlite3.connect(state / "runs.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    asked: list[float] = []  # what is asked for: how long a busy machine takes for that moment, nobody knows
    connect = sqlite3.connect

    def noting(address: str, *, timeout: float, **more: Any) -> sqlite3.Connection:
        asked.append(timeout)
        return connect(address, timeout=timeout, **more)

    monkeypatch.setattr(sqlite3, "connect", noting)
    assert not registry.note(state, entry(results, "r2"))
    assert asked == [registry.BUSY_S]
    assert "locked" in registry.read(state).problem
    other.close()
    assert names(state) == {"runs.db"}  # nothing was taken for damaged


def test_a_start_succeeds_where_no_registry_can_be_written(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fifo = tmp_path / "fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "runs.db")
    for place in (str(tmp_path / "file" / "below"), "/proc/nowhere", "/dev/full", str(fifo), "/dev/null/x"):
        child = spawn.solorun("start", results, "--", "echo", "trained", env={"SOLORUN_STATE": place})
        assert child.wait() == 0, child.text()
        assert "trained" in child.text()
        assert "Traceback" not in child.text()
    homeless = {"SOLORUN_STATE": "", "HOME": "", "XDG_STATE_HOME": "/proc"}
    assert spawn.solorun("start", results, "--", "true", env=homeless).wait() == 0


def test_a_full_disk_costs_the_entry_and_not_the_start(state: Path, results: Path) -> None:
    import resource

    registry.note(state, entry(results))
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        os._exit(42 if registry.note(state, entry(results, "r2")) is False else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert registry.read(state).entries == (entry(results),)


def test_another_users_registry_that_may_not_be_read_is_said_and_not_an_error(open_results: Path) -> None:
    state = open_results / "state"
    registry.note(state, entry(open_results))
    answer = as_nobody(lambda: [registry.note(state, entry(open_results)), registry.read(state).problem])
    assert answer == [False, ""]  # in a home that may not even be looked into, there is none


WRITING = """
    import sys
    from pathlib import Path
    from solorun import registry
    registry.BUSY_S = 60.0  # a slow disk may take longer for two writers than a start would wait
    state, mark = Path(sys.argv[1]), sys.argv[2]
    done = sum(
        registry.note(state, registry.Entry(f"{mark}-{n}", Path("/r") / mark, "m", "h", "u", float(n), n))
        for n in range(60)
    )
    print("written", done, flush=True)
"""


def test_two_processes_write_at_once(spawn: Spawner, state: Path) -> None:
    children = [spawn.python(WRITING, state, mark) for mark in ("one", "two")]
    for child in children:
        assert child.wait() == 0, child.text()
    assert [child.text() for child in children] == ["written 60\n"] * 2
    assert len(registry.read(state).entries) == 120


def test_two_processes_that_find_it_damaged_keep_one_file_and_lose_nothing_of_it(spawn: Spawner, state: Path) -> None:
    state.mkdir()
    (state / "runs.db").write_bytes(b"garbage" * 1000)
    children = [spawn.python(WRITING, state, mark) for mark in ("one", "two")]
    for child in children:
        assert child.wait() == 0, child.text()
    assert len(registry.read(state).entries) == sum(int(child.text().split()[1]) for child in children)
    assert len([name for name in names(state) if name.startswith("runs.db.damaged")]) == 1


def test_status_shows_every_started_run_once_also_far_from_the_roots(
    spawn: Spawner, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    inside = project / "results" / "in"
    (project / "results").mkdir(parents=True)
    far = tmp_path / "far away" / "-odd\nname"
    (tmp_path / "link").symlink_to(project)
    for place in (inside, far, far / "nested"):
        assert spawn.solorun("start", place, "--", "true").wait() == 0
    via_link = tmp_path / "link" / "results" / "in"
    assert spawn.solorun("start", via_link, "--", "true").wait() == 0
    monkeypatch.chdir(project)
    assert shown(capfd) == sorted([str(far), str(far / "nested"), str(inside)])
    monkeypatch.chdir(tmp_path / "link")
    assert len(shown(capfd)) == 3
    assert shown(capfd, "results") == ["results/in"]


def test_a_trainer_without_a_supervisor_is_noted_too(spawn: Spawner, results: Path, state: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    (found,) = wait_until(lambda: registry.read(state).entries)
    assert (found.directory, found.pid, found.machine) == (results, child.pid, HERE)


def test_status_does_not_load_the_database_where_there_is_none(tmp_path: Path) -> None:
    code = (
        "import sys; from solorun.cli.main import main; main(['status']); "
        "print([m for m in ('sqlite3', 'subprocess', 'psutil', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "SOLORUN_STATE": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def aged(state: Path) -> None:
    """Let the registry count as written long ago: what is kept of it holds from then on."""
    wait_until(lambda: time.time() - (state / "runs.db").stat().st_ctime > kept.SETTLED_S)


def test_what_was_read_is_kept_until_the_registry_changes(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    registry.note(state, entry(one, "r1"))
    aged(state)
    assert listed(state, HERE) == [one]
    with monkeypatch.context() as patch:
        patch.setattr(registry, "read", lambda _state: pytest.fail("it has not changed"))
        assert listed(state, HERE) == [one]
    assert listed(state, "other/5") == []  # of another machine, it is read anew
    registry.note(state, entry(two, "r2", started=1_900_000_000.0))
    assert listed(state, HERE) == [two, one]


@pytest.mark.parametrize("spoil", ["removed", "damaged", "a journal is there"])
def test_a_kept_answer_that_is_in_doubt_is_worked_out_anew(state: Path, results: Path, spoil: str) -> None:
    registry.note(state, entry(results))
    aged(state)
    assert listed(state, HERE) == [results]
    file = state / registry.KEPT
    if spoil == "removed":
        file.unlink()
    elif spoil == "damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        (state / "runs.db-journal").touch()
    assert listed(state, HERE) == [results]


def test_a_registry_that_becomes_damaged_or_goes_is_not_answered_from_what_was_kept(state: Path, results: Path) -> None:
    registry.note(state, entry(results))
    aged(state)
    assert listed(state, HERE) == [results]
    (state / "runs.db").write_bytes(b"not a database" * 400)
    found, problem = registry.started_in(state, HERE)
    assert (found, "cannot be read" in problem) == ([], True)
    (state / "runs.db").unlink()
    assert registry.started_in(state, HERE) == ([], "")
