"""What a trainer uses: `with solorun.hold(directory) as run`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import solorun
from solorun import lock, process
from solorun.claim import Claim, claim
from solorun.errors import DirectoryProblem
from solorun.lock import DirectoryLock
from solorun.owner import Here, ProcessId, encode_owner
from solorun.process import RUN_ID_VARIABLE
from solorun.progress import read_progress

from .stage import (
    DEADLINE_S,
    HOLDING,
    PYTHON,
    Child,
    Spawner,
    as_nobody,
    events,
    label_of,
    names,
    owner_of,
    quoted,
    run_record,
    snapshot,
    wait_until,
)


def hold(directory: Path, **options: object) -> solorun.hold:
    """Hold without watching for old-style trainers, which these tests do not start."""
    return solorun.hold(directory, **{"settle_s": 0, **options})  # type: ignore[arg-type]


def holding(spawn: Spawner, results: Path, code: str = HOLDING) -> Child:
    child = spawn.python(code, results)
    child.wait_for("holding")
    return child


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (RUN_ID_VARIABLE, "SOLORUN_LOCK_FD", "SOLORUN_SUPERVISOR"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert RUN_ID_VARIABLE not in os.environ


def test_a_directory_is_made_held_and_released(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results"
    with hold(path) as run:
        assert label_of(path) == os.getpid()
        assert run.directory == path
        assert (run.previous_run_id, run.adopted, run.should_stop, run.exit_code) == (None, False, False, 0)
        assert os.environ[RUN_ID_VARIABLE] == run.run_id
    assert not names(path) & {"training.lock", "training.owner.json"}
    assert run_record(path)["state"] == "completed"
    assert events(path) == ["started", "ended"]
    assert (path / "training.log").read_text() == "Released lock\n"


def test_the_release_is_announced_last(results: Path) -> None:
    said: list[tuple[str, int]] = []
    with hold(results, announce=lambda line: said.append((line, label_of(results)))):
        pass
    assert said == [("Released lock", 0)]


def test_progress_metrics_phases_and_events_are_written_down(fd: int, results: Path) -> None:
    with hold(results) as run:
        run.progress(1, 10, loss=2.5)
        run.progress(2, 10)
        run.metrics({"step": 2, "val_ce": 1.0})
        with run.phase("saving"):
            beat = read_progress(fd)
            assert beat is not None
            assert beat.phase == "saving"
            run.beat()
        beat = read_progress(fd)
        assert beat is not None
        assert (beat.phase, beat.step, beat.total, beat.run_id) == ("training", 2, 10, run.run_id)
        run.event("saved", step=2)
        run.log("a line")
        run.describe(fingerprint="f00", parent_run_id="p")
    lines = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"run_id": run.run_id, "step": 1, "loss": 2.5},
        {"run_id": run.run_id, "step": 2, "val_ce": 1.0},
    ]
    record = run_record(results)
    assert (record["first_step"], record["last_step"], record["total_steps"]) == (1, 2, 10)
    assert (record["fingerprint"], record["parent_run_id"]) == ("f00", "p")
    assert events(results) == ["started", "saved", "ended"]
    assert (results / "training.log").read_text() == "a line\nReleased lock\n"


def test_the_next_run_knows_the_one_before(results: Path) -> None:
    with hold(results) as first:
        pass
    with hold(results) as second:
        assert second.previous_run_id == first.run_id
    assert run_record(results)["parent_run_id"] == first.run_id


def test_a_held_directory_is_refused_with_everything_a_person_needs(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results)
    before = {name: facts for name, facts in snapshot(results).items() if name != "progress"}
    with pytest.raises(solorun.Held) as told, solorun.hold(results):  # test_refusal.py tells how quick it is
        pass
    text = solorun.explain(told.value)
    assert told.value.exit_code == 3
    assert f"held by PID {child.pid} of {process.user_name(os.getuid())}" in text
    assert f"on host {process.here().host}" in text
    assert re.search(r"for \d+ s", text)
    assert f"command: {PYTHON}" in text
    assert re.search(r"at step \d+ of 1000000, training, \d+ s ago", text)
    assert f"evidence: PID {child.pid} is alive" in text
    assert (
        f"next: watch it: solorun logs -f {quoted(results)}\n        end it:   solorun stop {quoted(results)}" in text
    )
    after = {name: facts for name, facts in snapshot(results).items() if name != "progress"}
    assert after == before


def test_a_lock_that_another_host_holds_across_a_shared_file_system_is_refused_as_foreign(results: Path) -> None:
    here = process.here()
    far = ProcessId(Here("studio", "studio/1", "boot-1", here.namespace), os.getpid(), 1)
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, far)))
    fd = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        before = snapshot(results)
        with pytest.raises(solorun.Refused, match="belongs to another place") as told:
            hold(results).__enter__()
        assert "ask on host studio" in told.value.next_step
        assert snapshot(results) == before
    finally:
        os.close(fd)


def test_an_old_style_trainer_is_named_in_the_refusal(spawn: Spawner, results: Path) -> None:
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", "old.py")
    child.wait_for("up")
    (results / "training.lock").write_text(f"{child.pid}\n")
    with pytest.raises(solorun.Held) as told, hold(results):
        pass
    text = solorun.explain(told.value)
    assert f"PID {child.pid}" in text
    assert "an old-style trainer" in text
    assert "old.py" in text


def test_a_refusal_leaves_the_handlers_as_they_were(spawn: Spawner, results: Path) -> None:
    holding(spawn, results)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(solorun.Held), hold(results):
        pass
    assert signal.getsignal(signal.SIGINT) == before


def test_an_interrupt_while_the_start_settles_leaves_nothing_held(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_lock: DirectoryLock) -> None:
        assert label_of(results) == os.getpid()
        raise KeyboardInterrupt

    monkeypatch.setattr(DirectoryLock, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt), hold(results):
        pass
    assert not names(results) & {"training.lock", "training.owner.json"}
    monkeypatch.undo()
    with solorun.hold(results, settle_s=0):
        pass


def test_a_file_in_the_directorys_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DirectoryProblem), hold(path):
            pass


def test_a_directory_without_the_right_to_write_is_told_and_stays_untouched(open_results: Path) -> None:
    open_results.chmod(0o755)

    def attempt() -> str:
        try:
            with hold(open_results):
                return "held"
        except solorun.SolorunError as error:
            return solorun.explain(error)

    assert "Permission denied" in as_nobody(attempt)
    assert names(open_results) == set()


def test_a_crash_is_written_to_log_and_journal_and_the_lock_released(results: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(results):
        _ = 1 / 0
    text = (results / "training.log").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: division by zero\nReleased lock\n")
    record = run_record(results)
    assert (record["state"], record["exit_code"], record["why"]) == (
        "crashed",
        1,
        "ZeroDivisionError: division by zero",
    )
    assert label_of(results) == 0


@pytest.mark.parametrize(
    ("code", "state"), [(0, "completed"), (None, "completed"), (5, "crashed"), ("words", "crashed")]
)
def test_an_exit_inside_the_block_is_recorded(results: Path, code: int | str | None, state: str) -> None:
    with pytest.raises(SystemExit), hold(results):
        sys.exit(code)
    assert run_record(results)["state"] == state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_after_a_graceful_stop_the_exit_status_is_128_and_the_signal(
    spawn: Spawner, results: Path, number: signal.Signals
) -> None:
    child = holding(spawn, results)
    child.signal(number)
    assert child.wait() == 128 + number
    assert f"leaving {number.name}" in child.text()
    record = run_record(results)
    assert (record["state"], record["exit_code"], record["signal"]) == ("interrupted", 128 + number, number)
    assert label_of(results) == 0


def test_a_trainer_may_keep_its_own_exit(results: Path) -> None:
    with hold(results, exit_on_stop=False) as run:
        signal.raise_signal(signal.SIGTERM)
        assert run.should_stop
        assert (run.stop_reason, run.exit_code) == ("SIGTERM", 143)


def test_a_second_sigint_leaves_at_once_with_the_lock_freed(spawn: Spawner, results: Path) -> None:
    code = """
        import sys, time, solorun
        with solorun.hold(sys.argv[1]) as run:
            print("holding", flush=True)
            while not run.should_stop:
                time.sleep(0.01)
            print("saving", flush=True)
            time.sleep(600)
    """
    child = holding(spawn, results, code)
    child.signal(signal.SIGINT)
    child.wait_for("saving")
    threading.Event().wait(0.35)  # a second request is one that comes a moment later
    child.signal(signal.SIGINT)
    assert child.wait() in (-signal.SIGINT, 130)  # both are 130 to a shell
    assert label_of(results) == 0
    assert not names(results) & {"training.lock", "training.owner.json"}
    record = run_record(results)
    assert (record["state"], record["exit_code"]) == ("interrupted", 130)


def test_an_impatient_person_does_not_interrupt_the_release(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solorun.stopping.SAME_REQUEST_S", 0)
    real = Claim.end

    def end(claim: Claim, *facts: object, **more: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(claim, *facts, **more)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Claim, "end", end)
    with pytest.raises(SystemExit), hold(results):
        signal.raise_signal(signal.SIGINT)
    assert names(results) == {"run.json", "events.jsonl", "training.log", "progress"}


def test_a_forked_child_that_leaves_the_block_releases_nothing(results: Path) -> None:
    with hold(results):
        pid = os.fork()
        if pid == 0:
            try:
                sys.exit(0)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert label_of(results) == os.getpid()
    code = f"""
import os, sys, solorun
with solorun.hold({str(results)!r}, settle_s=0):
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    print(open({str(results / "training.lock")!r}).read().strip() == str(os.getpid()))
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_forked_workers_come_and_go_and_the_directory_stays_held(spawn: Spawner, results: Path) -> None:
    code = """
        import multiprocessing, os, sys, solorun
        def work(n):
            return n * n
        with solorun.hold(sys.argv[1]) as run:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(4)), flush=True)
            print("ours", open(sys.argv[1] + "/training.lock").read().strip() == str(os.getpid()), flush=True)
    """
    child = spawn.python(code, results)
    assert child.wait() == 0
    assert child.text() == "[0, 1, 4, 9]\nours True\n"
    assert run_record(results)["state"] == "completed"


def test_two_holds_after_each_other_in_one_process_leave_no_descriptor(results: Path) -> None:
    with hold(results):
        pass
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with hold(results):
            pass
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_with_closed_streams_nothing_of_the_log_is_lost(spawn: Spawner, results: Path, closed: str) -> None:
    code = """
        import sys, solorun
        with solorun.hold(sys.argv[1], settle_s=0) as run:
            run.log("told")
    """
    line = f"exec {PYTHON} {quoted(spawn.program('deaf.py', code))} {quoted(results)} {closed}"
    assert spawn("sh", "-c", line).wait() == 0
    assert (results / "training.log").read_text() == "told\nReleased lock\n"


def test_two_directories_may_be_held_at_once(tmp_path: Path) -> None:
    with hold(tmp_path / "a") as a:
        with hold(tmp_path / "b") as b:
            assert os.environ[RUN_ID_VARIABLE] == b.run_id
        assert os.environ[RUN_ID_VARIABLE] == a.run_id


def test_a_lost_directory_stops_the_run_with_exit_1_and_is_released_where_it_is(results: Path) -> None:
    moved = results.with_name("moved")
    with pytest.raises(SystemExit) as left, hold(results) as run:
        results.rename(moved)
        wait_until(lambda: run.should_stop)
        assert run.directory == moved
        assert "moved" in run.stop_reason
    assert left.value.code == 1
    assert not names(moved) & {"training.lock", "training.owner.json"}
    assert "CONFLICT" in (moved / "training.log").read_text()
    assert "conflict" in events(moved)


def test_a_deleted_directory_stops_the_run_and_has_no_path(results: Path) -> None:
    import shutil

    with pytest.raises(SystemExit), hold(results) as run:
        wait_until(lambda: shutil.rmtree(results, ignore_errors=True) or not results.exists())
        wait_until(lambda: run.should_stop)
        with pytest.raises(DirectoryProblem, match="deleted"):
            _ = run.directory


def test_a_label_deleted_by_hand_is_back_and_told(results: Path) -> None:
    with hold(results):
        (results / "training.lock").unlink()
        wait_until(lambda: label_of(results) == os.getpid())
        wait_until(lambda: "restored label" in events(results))
    assert "put back" in (results / "training.log").read_text()
    assert label_of(results) == 0


def test_after_a_kill_the_next_start_takes_over_and_tells(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results)
    child.signal(signal.SIGKILL)
    child.wait()
    (results / ".solorun.1.1.tmp").write_text("left by the killed one")
    with hold(results) as run:
        assert run.previous_run_id is not None
        assert label_of(results) != child.pid
    assert events(results) == ["started", "found dead", "taken over", "started", "ended"]
    assert not [name for name in names(results) if name.endswith(".tmp")]


def test_a_full_disk_does_not_keep_the_lock(results: Path) -> None:
    import resource

    pid = os.fork()
    if pid == 0:
        try:
            with hold(results) as run:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                run.progress(1, 2, loss=1.0)
                run.log("line")
                run.event("saved")
            os._exit(42)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert not names(results) & {"training.lock", "training.owner.json"}
    with hold(results):
        pass


def test_lines_of_journal_and_metrics_that_a_full_disk_cost_are_counted_and_told(results: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with hold(results) as run:
        run.progress(1, 9, loss=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            for step in (2, 3, 4):
                run.progress(step, 9, loss=1.0)
            run.event("saving", step=4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "lost" not in (results / "training.log").read_text()
        run.progress(5, 9, loss=1.0)
        assert "3 lines of metrics.jsonl lost: the file could not be written" in (results / "training.log").read_text()
    text = (results / "training.log").read_text()
    assert "1 line of events.jsonl lost: the file could not be written" in text
    assert text.count(" lost: ") == 2, "told once"
    steps = [json.loads(line)["step"] for line in (results / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 5]
    assert "saving" not in events(results)


# Under `solorun start`.


@pytest.fixture
def program(spawn: Spawner) -> Path:
    return spawn.program("t.py", HOLDING)


def supervised(spawn: Spawner, results: Path, *argv: str | Path) -> tuple[Child, int]:
    """A supervisor with a trainer that has adopted its lock; the supervisor and the trainer's PID."""
    child = spawn.solorun("start", results, "--", *argv)
    wait_until(lambda: "adopted" in events(results), what=child.text())
    return child, label_of(results)


def owner(results: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((results / "training.owner.json").read_text())
    return found


def test_a_trainer_under_a_supervisor_adopts_its_lock(spawn: Spawner, results: Path, program: Path) -> None:
    child, pid = supervised(spawn, results, sys.executable, program, results)
    assert pid != child.pid
    assert owner(results)["adopted"] is True
    run_id = run_record(results)["run_id"]
    assert owner(results)["run_id"] == run_id
    with pytest.raises(solorun.Held), hold(results):
        pass
    child.signal(signal.SIGINT)
    assert child.wait() == 130
    record = run_record(results)
    assert (record["run_id"], record["state"], record["exit_code"]) == (run_id, "interrupted", 130)
    assert "trainer finished" in events(results)
    assert (results / "training.log").read_text().endswith("Released lock\n")
    assert not names(results) & {"training.lock", "training.owner.json"}


def test_a_trainer_that_is_a_grandchild_stands_in_the_label_itself(
    spawn: Spawner, results: Path, program: Path
) -> None:
    child, pid = supervised(spawn, results, "sh", "-c", f"{PYTHON} {quoted(program)} {quoted(results)}; true")
    assert "t.py" in " ".join(process.argv(pid))
    child.signal(signal.SIGINT)
    child.wait()
    assert label_of(results) == 0


LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def test_a_trainer_whose_launcher_closed_the_descriptor_still_joins_its_own_run(
    spawn: Spawner, results: Path, program: Path
) -> None:
    child, pid = supervised(spawn, results, sys.executable, "-c", LAUNCHER, sys.executable, program, results)
    assert "t.py" in process.argv(pid)[1]
    child.signal(signal.SIGINT)
    child.wait()
    assert label_of(results) == 0
    assert (results / "training.log").read_text().endswith("Released lock\n")


def is_locked(results: Path) -> bool:
    """Whether somebody has the kernel's lock; it is taken for an instant only, so that who waits for it gets a turn."""
    found = lock.seize(results)
    if isinstance(found, DirectoryLock):
        found.close()
    return isinstance(found, lock.Busy)


def test_such_a_trainer_takes_the_kernels_lock_when_its_supervisor_dies(
    spawn: Spawner, results: Path, program: Path
) -> None:
    child, pid = supervised(spawn, results, sys.executable, "-c", LAUNCHER, sys.executable, program, results)
    launcher = process.system.parent(pid)
    trainer = process.identify(pid)
    assert trainer is not None
    child.signal(signal.SIGKILL)
    child.wait()
    os.kill(launcher, signal.SIGKILL)  # it has the inherited descriptor too
    wait_until(lambda: is_locked(results))
    assert lock.enter(results) == lock.Busy()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not process.is_alive(trainer))
    with hold(results):
        pass


def test_what_is_left_of_a_killed_run_gets_a_moment_to_end(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solorun.claim.SURVIVORS_S", DEADLINE_S)  # what ends in a moment may take long where it is busy
    code = """
        import os, subprocess, sys, time, solorun
        with solorun.hold(sys.argv[1]):
            subprocess.Popen(["sleep", "0.7"])
            os.kill(os.getpid(), 9)
    """
    child = spawn.python(code, results)
    child.wait()
    with hold(results) as run:  # refused while the worker lived, and it ends by itself
        assert run.previous_run_id


def test_a_supervised_run_knows_the_run_before_it(spawn: Spawner, results: Path) -> None:
    with hold(results) as first:
        pass
    program = spawn.program(
        "told.py", "import sys, solorun\nwith solorun.hold(sys.argv[1]) as r: print(r.previous_run_id)"
    )
    child = spawn.solorun("start", results, "--", sys.executable, program, results)
    assert child.wait() == 0
    assert first.run_id in (results / "training.log").read_text()


def test_a_supervisor_killed_leaves_the_trainer_to_go_on_and_release_by_itself(
    spawn: Spawner, results: Path, program: Path
) -> None:
    child, pid = supervised(spawn, results, sys.executable, program, results)
    trainer = process.identify(pid)
    assert trainer is not None
    child.signal(signal.SIGKILL)
    child.wait()
    progress = (results / "progress").read_bytes()
    wait_until(lambda: (results / "progress").read_bytes() != progress)
    assert label_of(results) == pid
    with pytest.raises(solorun.Held), hold(results):
        pass
    (results / "training.lock").unlink()
    wait_until(lambda: label_of(results) == pid)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: label_of(results) == 0)
    wait_until(lambda: (results / "training.log").read_text().endswith("Released lock\n"))
    assert run_record(results)["state"] == "interrupted"
    assert "supervisor was gone" in events(results)
    wait_until(lambda: not process.is_alive(trainer))
    with hold(results):
        pass


def test_a_trainer_killed_is_cleaned_up_after_by_its_supervisor(spawn: Spawner, results: Path, program: Path) -> None:
    child, pid = supervised(spawn, results, sys.executable, program, results)
    os.kill(pid, signal.SIGKILL)
    assert child.wait() == 128 + signal.SIGKILL
    assert not names(results) & {"training.lock", "training.owner.json"}
    record = run_record(results)
    assert (record["state"], record["signal"]) == ("killed", signal.SIGKILL)


def test_both_killed_leave_a_directory_that_the_next_start_takes_with_no_hand(
    spawn: Spawner, results: Path, program: Path
) -> None:
    child, pid = supervised(spawn, results, sys.executable, program, results)
    trainer = process.identify(pid)
    assert trainer is not None
    child.signal(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    child.wait()
    wait_until(lambda: not process.is_alive(trainer))
    assert label_of(results) == pid
    with hold(results):
        assert label_of(results) == os.getpid()
    assert "taken over" in events(results)


def test_of_two_trainers_under_one_supervisor_the_second_is_refused(
    spawn: Spawner, results: Path, program: Path
) -> None:
    line = f"{PYTHON} {quoted(program)} {quoted(results)} & {PYTHON} {quoted(program)} {quoted(results)}; wait"
    child = spawn.solorun("start", results, "--", "sh", "-c", line)
    log = results / "training.log"
    wait_until(lambda: log.exists() and "by another process of this very run" in log.read_text())
    wait_until(lambda: "holding" in log.read_text())
    assert log.read_text().count("holding") == 1
    os.kill(wait_until(lambda: label_of(results)), signal.SIGTERM)
    child.wait()
    assert label_of(results) == 0


def test_two_trainers_one_after_the_other_under_one_supervisor_both_train(spawn: Spawner, results: Path) -> None:
    program = spawn.program("short.py", "import sys, solorun\nwith solorun.hold(sys.argv[1]): print('trained')\n")
    line = f"{PYTHON} {quoted(program)} {quoted(results)} && {PYTHON} {quoted(program)} {quoted(results)}"
    child = spawn.solorun("start", results, "--", "sh", "-c", line)
    assert child.wait() == 0
    assert (results / "training.log").read_text().count("trained\n") == 2
    assert run_record(results)["state"] == "completed"


def test_two_holds_in_one_trainer_under_one_supervisor_both_adopt(spawn: Spawner, results: Path) -> None:
    code = """
        import sys, solorun
        for _ in range(2):
            with solorun.hold(sys.argv[1]) as run:
                print("adopted", run.adopted)
    """
    child = spawn.solorun("start", results, "--", sys.executable, spawn.program("twice.py", code), results)
    assert child.wait() == 0, child.text()
    assert (results / "training.log").read_text().count("adopted True\n") == 2


def test_many_holds_in_one_trainer_under_one_supervisor_leave_no_descriptor(spawn: Spawner, results: Path) -> None:
    code = """
        import os, sys, solorun
        number, opened = int(os.environ["SOLORUN_LOCK_FD"]), []
        for _ in range(3):
            with solorun.hold(sys.argv[1]):
                pass
            opened.append(len(os.listdir("/dev/fd")))
        print("the same" if len(set(opened)) == 1 else opened, os.path.samestat(os.fstat(number), os.stat(sys.argv[1])))
    """
    child = spawn.solorun("start", results, "--", sys.executable, spawn.program("many.py", code), results)
    assert child.wait() == 0, child.text()
    assert "the same True\n" in (results / "training.log").read_text()


def test_a_second_hold_that_is_refused_leaves_the_first_its_inherited_lock(spawn: Spawner, results: Path) -> None:
    code = """
        import os, sys, solorun
        number = int(os.environ["SOLORUN_LOCK_FD"])
        with solorun.hold(sys.argv[1]):
            before = os.fstat(number)
            try:
                solorun.hold(sys.argv[1]).__enter__()
            except solorun.Held:
                print("refused", os.path.samestat(os.fstat(number), before))
    """
    child = spawn.solorun("start", results, "--", sys.executable, spawn.program("refused.py", code), results)
    assert child.wait() == 0, child.text()
    assert "refused True\n" in (results / "training.log").read_text()


def test_an_adoption_without_a_log_leaves_no_descriptor(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(results) as run:
        number = os.dup(run._claim.lock.truth)
        monkeypatch.setenv("SOLORUN_LOCK_FD", str(number))
        assert run._claim._keeper is not None
        run._claim._keeper.dismiss()  # what it opens for a look would be counted
        (results / "training.log").unlink()
        (results / "training.log").mkdir()
        before = set(os.listdir("/dev/fd"))
        with pytest.raises(DirectoryProblem):
            hold(results).__enter__()
        assert set(os.listdir("/dev/fd")) == before
        os.close(number)


def test_a_claim_that_is_abandoned_after_its_keeper_began_leaves_no_keeper_and_no_label(results: Path) -> None:
    made = claim(results, time.time, 0)
    made.publish(process.identify_self(), ("train",), supervisor=None, adopted=True)
    made.keep(lambda _reason: None)
    made.abandon()
    assert made._keeper is not None
    assert made._keeper._over
    assert "training.lock" not in names(results)
    assert made.log.fd == -1


def test_a_trainer_under_a_supervisor_may_hold_another_directory_too(
    spawn: Spawner, results: Path, tmp_path: Path
) -> None:
    code = """
        import sys, solorun
        with solorun.hold(sys.argv[1]) as one, solorun.hold(sys.argv[2]) as two:
            print(one.adopted, two.adopted)
    """
    program = spawn.program("both.py", code)
    child = spawn.solorun("start", results, "--", sys.executable, program, results, tmp_path / "other")
    assert child.wait() == 0
    assert "True False\n" in (results / "training.log").read_text()
    assert label_of(tmp_path / "other") == 0
