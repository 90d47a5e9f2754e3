"""Why a run died: last words, signals, memory, power."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import closing, process
from solorun.causes import MemoryDeaths, cause_of, cause_of_vanishing, kill_message, outcome, was_killed
from solorun.closing import close_dead
from solorun.lastwords import LONGEST, error_line, last_words, read_last_words
from solorun.record import RunRecord, journal, read_events, read_record, write_record

from .stage import HOLDING, Spawner, run_record, wait_until

HERE = process.here()
RUN = "20260101-000000-aaaaaaaa"
RECORD = RunRecord(RUN, None, ("t",), "ada", HERE.host, 4242, 1_800_000_000.0, boot=HERE.boot)

TRACEBACK = """\
Traceback (most recent call last):
  File "t.py", line 9, in <module>
    main()
ValueError: loss is nan"""


@pytest.mark.parametrize(
    ("log", "words", "error"),
    [
        ("", (), ""),
        ("step 1\nstep 2\n", ("step 1", "step 2"), ""),
        (f"step 1\n{TRACEBACK}\nReleased lock\n", tuple(TRACEBACK.split("\n")), "ValueError: loss is nan"),
        (f"{TRACEBACK}\nstep 2\n{TRACEBACK.replace('nan', 'inf')}\n", None, "ValueError: loss is inf"),
        ("\n".join("[rank0]: " + line for line in TRACEBACK.split("\n")), tuple(TRACEBACK.split("\n")),
         "ValueError: loss is nan"),
        (f"{TRACEBACK}\n" + "step\n" * 200, ("step",) * 5, ""),
        ("fine\nfatal error: no disk\nbye\n", ("fatal error: no disk",), ""),
        ("  5%|#   \r 10%|##  \rerror: bar\n", ("error: bar",), ""),
        ("Traceback (most recent call last):\n  File", None, ""),
        ("\x00\xff garbage \x1b[31m", ("\x00\xff garbage \x1b[31m",), ""),
        ("KeyboardInterrupt\n", ("KeyboardInterrupt",), ""),
        (TRACEBACK.replace("ValueError: loss is nan", "torch.OutOfMemoryError"), None, "torch.OutOfMemoryError"),
    ],
)  # fmt: skip
def test_the_last_words_of_a_log(log: str, words: tuple[str, ...] | None, error: str) -> None:
    found = last_words(log)
    if words is not None:
        assert found == words
    assert error_line(found) == error
    assert len(found) <= LONGEST


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    frames = "".join(f'  File "t.py", line {n}, in f\n    f()\n' for n in range(500))
    found = last_words(f"Traceback (most recent call last):\n{frames}RecursionError: too deep\n")
    assert len(found) == LONGEST
    assert (found[0], found[-1]) == ("Traceback (most recent call last):", "RecursionError: too deep")


def test_a_group_of_exceptions_is_told_as_it_is_drawn() -> None:
    log = "  + Exception Group Traceback (most recent call last):\n  |   File\n  | ExceptionGroup: two (2 of them)\n"
    assert any("ExceptionGroup: two" in line for line in last_words(log))


def test_only_the_runs_own_part_of_the_log_is_read(fd: int, results: Path) -> None:
    (results / "training.log").write_text(f"{TRACEBACK}\nstep 1\n")
    assert read_last_words(fd, len(TRACEBACK) + 1) == ("step 1",)
    assert read_last_words(fd, 1 << 40) == tuple(TRACEBACK.split("\n"))  # rotated since
    (results / "training.log").write_bytes(b"x" * (1 << 20) + b"\n" + TRACEBACK.encode())
    assert error_line(read_last_words(fd, 0)) == "ValueError: loss is nan"


@pytest.mark.parametrize(
    ("state", "evidence", "words", "cause"),
    [
        ("completed", "", (), "completed"), ("interrupted", "", (), "interrupted"), ("crashed", "", (), "error"),
        ("killed", "", (), "signal"), ("killed", "killed process 5", (), "out of memory"), ("lost", "", (), "vanished"),
        ("crashed", "", ("Traceback (most recent call last):", "MemoryError"), "out of memory"),
        ("crashed", "", ("Traceback (most recent call last):", "RuntimeError: CUDA out of memory."), "out of memory"),
        ("completed", "", ("out of memory",), "completed"),
    ],
)  # fmt: skip
def test_causes_of_an_end_that_was_seen(state: str, evidence: str, words: tuple[str, ...], cause: str) -> None:
    assert cause_of(state, evidence, words) == cause


def test_who_was_killed() -> None:
    assert was_killed(9, 137, ())
    assert was_killed(None, 137, ())
    assert was_killed(None, 1, ("RuntimeError: DataLoader worker (pid 5) is killed by signal: Killed.",))
    assert not was_killed(15, 143, ())
    assert not was_killed(None, 1, ("ValueError: x",))


def test_a_changed_boot_is_power_loss_and_the_same_boot_is_not() -> None:
    assert cause_of_vanishing(RECORD, HERE, "")[0] == "vanished"
    assert cause_of_vanishing(RECORD, HERE, "Killed process 5")[0] == "out of memory"
    assert cause_of_vanishing(RECORD, replace(HERE, boot="after"), "x")[0] == "power loss"
    assert cause_of_vanishing(replace(RECORD, boot=""), HERE, "")[0] == "vanished"
    assert cause_of_vanishing(replace(RECORD, host="elsewhere"), replace(HERE, boot="after"), "")[0] == "vanished"


KERNEL = "Memory cgroup out of memory: Killed process 4242 (python3) total-vm:413696kB, anon-rss:204800kB, file-rss:0kB"


def test_the_kernels_own_words_name_the_process_and_not_an_earlier_one_with_its_pid() -> None:
    told = "Memory cgroup out of memory: Killed process 4242 (python3) with 200 MB resident"
    messages = [(5.0, "usb 1-1: new device"), (9.0, KERNEL)]
    assert kill_message(messages, {4242}, 8.0) == told
    assert kill_message(messages, {4242}, 9.5) == ""
    assert kill_message(messages, {424}, 0.0) == ""
    assert kill_message([(1.0, "Out of memory: Killed process 7 (a b) total-vm:1kB")], {7}, 0.0) == (
        "Out of memory: Killed process 7 (a b)"
    )


def kernel(root: Path, group: int, machine: int, version: int = 2) -> None:
    """The files of a kernel that has killed so many."""
    (root / "proc" / "7").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "7" / "cgroup").write_text("0::/job\n" if version == 2 else "5:cpu:/x\n4:memory:/job\n0::/\n")
    place = root / "sys/fs/cgroup" / ("job" if version == 2 else "memory/job")
    place.mkdir(parents=True, exist_ok=True)
    (place / ("memory.events" if version == 2 else "memory.oom_control")).write_text(f"oom 9\noom_kill {group}\n")
    (root / "proc" / "vmstat").write_text(f"nr_free_pages 1\noom_kill {machine}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_counters_of_the_memory_group_are_evidence(tmp_path: Path, version: int) -> None:
    kernel(tmp_path, 3, 7, version)
    deaths = MemoryDeaths(root=tmp_path, clock=lambda: 100.0)
    deaths.look(7)
    assert deaths.evidence((), 0.0, ()) == ""
    kernel(tmp_path, 4, 8, version)
    assert deaths.evidence((), 0.0, ()) == "oom_kill of its memory group rose from 3 to 4"


def test_the_machines_counter_is_evidence_only_where_messages_cannot_be_read(tmp_path: Path) -> None:
    kernel(tmp_path, 3, 7)
    deaths = MemoryDeaths(root=tmp_path, clock=lambda: 100.0)
    deaths.look(7)
    kernel(tmp_path, 3, 8)
    assert deaths.evidence((), 0.0, ()) == "oom_kill of the machine rose from 7 to 8 as it died"
    assert deaths.evidence((), 0.0, [(1.0, "another message")]) == ""


def test_a_look_that_came_after_the_kill_does_not_hide_it_and_an_old_kill_is_no_evidence(tmp_path: Path) -> None:
    now = [100.0]
    deaths = MemoryDeaths(root=tmp_path, clock=lambda: now[0])
    for group in (0, 0, 1):
        kernel(tmp_path, group, 0)
        deaths.look(7)
        now[0] += 6
    assert "rose from 0 to 1" in deaths.evidence((), 0.0, ())
    deaths.look(7)
    assert deaths.evidence((), 0.0, ()) == ""


def test_a_system_that_tells_nothing_says_so(tmp_path: Path) -> None:
    deaths = MemoryDeaths(root=tmp_path, platform="darwin")
    deaths.look(7)
    assert deaths.evidence((7,), 0.0) == ""
    assert "jetsam" in deaths.silence()
    assert "cannot be read" in MemoryDeaths(root=tmp_path, platform="linux").silence()


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"state": "completed"}, "completed"),
        ({"state": "interrupted", "why": "SIGTERM", "stopped_by": "ada"}, "interrupted by ada (SIGTERM)"),
        ({"state": "interrupted", "why": "SIGINT"}, "interrupted (SIGINT)"),
        ({"state": "crashed", "why": "ValueError: x", "cause": "error"}, "crashed: ValueError: x"),
        ({"state": "crashed", "exit_code": 3}, "crashed: exit status 3"),
        ({"state": "killed", "why": "SIGKILL"}, "killed by SIGKILL"),
        ({"state": "killed", "why": "kernel: Killed process 5", "cause": "out of memory"},
         "out of memory (kernel: Killed process 5)"),
        ({"state": "lost", "cause": "power loss", "why": "the machine was restarted while it ran"},
         "power loss: the machine was restarted while it ran"),
        ({"state": "lost"}, "vanished"),
        ({}, "still running"),
    ],
)  # fmt: skip
def test_an_end_in_words(facts: dict[str, Any], told: str) -> None:
    assert outcome(replace(RECORD, **facts)) == told


def test_a_run_that_was_found_dead_has_one_end_however_often_it_is_found(fd: int, results: Path) -> None:
    write_record(fd, RECORD)
    journal(fd, RUN, "started", 1.0, pid=4242)
    for _ in range(3):
        closed = close_dead(fd, results, read_record(fd), 5.0, replace(HERE, boot="after"))
    assert closed is not None
    assert (closed.state, closed.cause) == ("lost", "power loss")
    (end,) = [event for event in read_events(fd) if event["event"] == "found dead"]
    assert (end["cause"], end["run_id"], end["started"]) == ("power loss", RUN, RECORD.started)


def test_ends_that_a_kill_kept_out_of_the_journal_are_made_up_for(fd: int, results: Path) -> None:
    write_record(fd, replace(RECORD, state="completed", ended=9.0, exit_code=0))
    journal(fd, "earlier", "started", 1.0)
    for _ in range(2):
        close_dead(fd, results, read_record(fd), 20.0, HERE)
    ends = [(event["event"], event["run_id"], event["time"]) for event in read_events(fd)][1:]
    assert ends == [("ended", RUN, 9.0), ("found dead", "earlier", 20.0)]


@pytest.mark.parametrize("run_id", [[1], {"a": 1}, None, 7])
def test_an_end_in_the_journal_that_names_no_run_is_nobodys(fd: int, results: Path, run_id: object) -> None:
    write_record(fd, RECORD)
    journal(fd, run_id, "ended", 1.0)  # type: ignore[arg-type]  # a damaged line
    closed = close_dead(fd, results, RECORD, 5.0, HERE)
    assert closed is not None
    assert closed.state == "lost"


def test_a_run_that_was_killed_by_a_stop_is_told_as_killed(fd: int, results: Path) -> None:
    write_record(fd, RECORD)
    journal(fd, RUN, "stop requested", 1.0, by="ada", signal=15)
    journal(fd, RUN, "killed", 2.0, by="ada", signal=9)
    closed = close_dead(fd, results, RECORD, 5.0, HERE)
    assert closed is not None
    assert outcome(closed) == "killed by SIGKILL, after ada asked it to stop"


def test_a_crash_is_written_down_with_its_last_words(spawn: Spawner, results: Path) -> None:
    code = "print('step 1'); raise ValueError('loss is nan')"
    assert spawn.solorun("start", results, "--", sys.executable, "-c", code).wait() == 1
    record = run_record(results)
    assert (record["cause"], record["why"]) == ("error", "ValueError: loss is nan")
    assert record["last_words"].splitlines()[0] == "Traceback (most recent call last):"
    assert spawn.solorun("start", results, "--", "sh", "-c", "echo fatal: no disk; exit 3").wait() == 3
    assert run_record(results)["why"] == "exit status 3: fatal: no disk"
    assert spawn.solorun("start", results, "--", "sh", "-c", "exit 4").wait() == 4
    assert (run_record(results)["why"], run_record(results)["last_words"]) == ("exit status 4", "")


def test_a_trainer_of_ours_that_crashes_says_its_error(spawn: Spawner, results: Path) -> None:
    code = "import solorun, sys\nwith solorun.hold(sys.argv[1]):\n    raise ValueError('loss is nan')"
    assert spawn.python(code, results).wait() == 1
    record = run_record(results)
    assert (record["cause"], record["why"]) == ("error", "ValueError: loss is nan")
    assert record["last_words"].endswith("ValueError: loss is nan")


def test_who_asked_for_the_stop_is_written_down(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    assert spawn.solorun("stop", results).wait() == 0
    child.wait()
    wait_until(lambda: run_record(results)["state"] == "interrupted")
    assert run_record(results)["cause"] == "interrupted"
    assert run_record(results)["stopped_by"] in (process.user_name(os.getuid()), "")  # it may end before that is noted


def test_a_full_disk_at_the_end_keeps_the_record_as_it_was(
    fd: int, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(fd, RECORD)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(closing, "journal", full)
    end = closing.End("completed", 0, None, "")
    assert closing.write_end(fd, results, RECORD, end, 5.0).state == "completed"
    found = read_record(fd)
    assert found is not None
    assert found.state == "completed"


EATING = """
    import sys, time
    hold = []
    open(sys.argv[1], "w").write("0")
    print("eating", flush=True)
    for _ in range(600):
        hold.append(bytearray(b"1") * (1 << 20))
        time.sleep(0.0005)
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory group of 100 MB of our own."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root on Linux can make a memory group")
    two, one = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    controllers = two / "cgroup.controllers"
    try:
        if controllers.exists() and "memory" in controllers.read_text().split():
            (two / "cgroup.subtree_control").write_text("+memory")
            place = two / f"solorun-test-{os.getpid()}"
            place.mkdir()
            (place / "memory.max").write_text("100M")
            if (place / "memory.swap.max").exists():
                (place / "memory.swap.max").write_text("0")
        else:
            place = one / f"solorun-test-{os.getpid()}"
            place.mkdir()
            (place / "memory.limit_in_bytes").write_text("100M")
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    yield place

    def gone() -> bool:
        try:
            place.rmdir()
        except OSError:
            return False
        return True

    wait_until(gone)


def test_a_run_that_the_kernel_killed_for_memory_is_told_with_the_kernels_evidence(
    spawn: Spawner, results: Path, small_group: Path
) -> None:
    eat = spawn.program("eat.py", EATING)
    told = results.parent / "told"
    (results.parent / "solorun.toml").write_text(f"[[notify]]\ncommand = ['tee', '-a', '{told}']\n")
    child = spawn.solorun("start", results, "--", sys.executable, eat, small_group / "cgroup.procs", cwd=results.parent)
    assert child.wait(60) == 128 + signal.SIGKILL, child.text()
    record = run_record(results)
    assert (record["state"], record["cause"]) == ("killed", "out of memory")

    def crash() -> dict[str, Any] | None:  # a machine that is short of memory, or slow, may be warned of before
        lines = told.read_text().splitlines(keepends=True) if told.exists() else []
        notices = [json.loads(line) for line in lines if line.endswith("}\n")]
        return next((notice for notice in notices if notice["occasion"] == "crash"), None)

    notice = wait_until(crash)
    assert notice["facts"]["cause"] == "out of memory"
    assert ": out of memory (kernel: " in notice["text"]
    assert record["why"].startswith("kernel: ")
    assert outcome(replace(RECORD, **{key: record[key] for key in ("state", "cause", "why")})).startswith(
        "out of memory (kernel: "
    )


def test_a_trainer_without_a_supervisor_that_was_killed_for_memory_is_found_so_by_the_next_start(
    spawn: Spawner, results: Path, small_group: Path
) -> None:
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("the kernel's messages cannot be read here")
    program = "import solorun, sys\nwith solorun.hold(sys.argv[2]):\n" + "\n".join(
        "    " + line.removeprefix("    ") for line in EATING.splitlines() if line
    )
    child = spawn.python(program, small_group / "cgroup.procs", results)
    assert child.wait(60) == -signal.SIGKILL, child.text()
    assert spawn.solorun("check", results).wait() == 0
    record = run_record(results)
    assert (record["state"], record["cause"]) == ("lost", "out of memory")
    assert f"process {child.pid} (python" in record["why"]


def test_a_copied_directory_does_not_end_the_original(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    copy = results.with_name("copy")
    shutil.copytree(results, copy)
    assert spawn.solorun("check", copy).wait() == 0
    assert run_record(results)["state"] == "running"
