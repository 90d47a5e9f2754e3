"""Hostile surroundings: something else in the place of each file, and by name what that and the like first broke."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solorun.cli.stop import _not_ended
from solorun.label import read_owner
from solorun.logs import last_lines
from solorun.settings import Settings
from solorun.stop import StillRunning
from tests.faults.surroundings import attack, controls
from tests.guard.stage import NOBODY, Spawner, Terminal, label_of, names, run_record, wait_until

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files and devices")
ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def test_whatever_stands_in_the_place_of_a_file_every_verb_answers() -> None:
    tally = attack(6, 0.02)
    assert not tally.failures, tally
    assert tally.cases >= 30, tally


def test_logs_of_a_fifo_says_that_it_is_no_plain_file(spawn: Spawner, results: Path) -> None:
    os.mkfifo(results / "training.log")
    said = spawn.solorun("logs", results)
    assert said.wait() == 1
    assert "it is no plain file" in said.text()


def test_a_fifo_among_the_tickets_keeps_nobody_waiting(spawn: Spawner, results: Path) -> None:
    (results / "waiting").mkdir()
    os.mkfifo(results / "waiting" / "00000000000000000001-1-aaaa.json")
    assert spawn.solorun("start", "--wait", results, "--", "true").wait() == 0


@as_root
def test_a_journal_without_an_end_is_not_read(spawn: Spawner, results: Path) -> None:
    os.mknod(results / "events.jsonl", 0o666 | 0o020000, os.makedev(1, 5))
    said = spawn.solorun("start", results, "--", "true")
    assert said.wait() == 0, said.text()
    assert spawn.solorun("history", results).wait() == 0


@as_root
@pytest.mark.parametrize("name", ["training.log", "events.jsonl", "metrics.jsonl", "nohup.out"])
def test_another_users_link_does_not_choose_what_is_appended_to(spawn: Spawner, results: Path, name: str) -> None:
    precious = results.parent / "precious"
    precious.write_text("mine\n")
    (results / name).symlink_to(precious)
    os.lchown(results / name, NOBODY, NOBODY)
    said = spawn.solorun("start", "--background", results, "--", "echo", "hello")
    assert said.wait() == (1 if name == "training.log" else 0), said.text()
    wait_until(lambda: label_of(results) == 0)
    assert precious.read_text() == "mine\n"


def test_a_log_that_is_ones_own_link_is_followed(spawn: Spawner, results: Path) -> None:
    elsewhere = results.parent / "elsewhere.log"
    (results / "training.log").symlink_to(elsewhere)
    assert spawn.solorun("start", results, "--", "echo", "hello").wait() == 0
    assert "hello" in elsewhere.read_text()


LISTENS_LONG = """
    import sys
    import solorun.cli.main, solorun.start
    solorun.start.FIRST_STEPS_S = 60.0
    sys.exit(solorun.cli.main.main())
"""
"""`solorun`, whose background start hears of an early end also on a machine where that takes more than a second."""


def test_no_verb_sends_what_a_terminal_would_obey(
    spawn: Spawner, terminal: Callable[..., Terminal], results: Path
) -> None:
    odd = results / f"a {ESCAPE} 'b\"\n$(c)"
    failing = ("sh", "-c", f"printf 'a{ESCAPE}b\\nValueError: {ESCAPE}boom\\n'; exit 3", ESCAPE)
    started = spawn.python(LISTENS_LONG, "start", "--background", odd, "--", *failing)
    assert started.wait() == 3
    assert "boom" in started.text()
    assert controls(started.text().encode()) == b""
    wait_until(lambda: run_record(odd)["state"] == "crashed")
    for verb in ("status", "history", "logs"):
        screen = terminal(sys.executable, "-m", "solorun", verb, odd)
        assert screen.wait() == 0
        assert "crashed" in screen.seen or "boom" in screen.seen
        assert controls(screen.seen.replace("\r\n", "\n").encode()) == b"", verb


def test_a_log_goes_into_a_pipe_as_it_is(spawn: Spawner, results: Path) -> None:
    (results / "training.log").write_text("\x1b[31mred\n")
    said = spawn.solorun("logs", results)
    assert said.wait() == 0
    assert said.text() == "\x1b[31mred\n"


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_one_endless_line_is_shown_from_its_end_and_not_read_whole(results: Path, count: int) -> None:
    log = results / "training.log"
    with log.open("wb") as file:
        file.truncate(10 << 30)
        file.seek(10 << 30)
        file.write(b"x" * (6 << 20) + b"the end")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = last_lines(log, count)
    assert line.startswith("... x")
    assert line.endswith("xthe end")
    assert len(line) < 5000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10  # KiB; on macOS bytes, still true


def test_the_status_script_reads_no_fifo_and_no_line_of_gigabytes(results: Path) -> None:
    os.mkfifo(results / "training.lock")
    with (results / "training.log").open("wb") as file:
        file.truncate(2 << 30)
        file.seek(2 << 30)
        file.write(b"x\xc2\x9b31m" * 100_000)
    script = Path(__file__).parents[2] / "kssm" / "check_training_status.sh"
    told = subprocess.run(["sh", script, results], capture_output=True, timeout=600, check=False)
    assert told.returncode == 4
    assert b"names no process (stale)" in told.stdout
    assert len(told.stdout) < 20_000
    assert controls(told.stdout) == b""


def test_a_command_of_a_megabyte_has_a_record_that_can_be_read(spawn: Spawner, results: Path) -> None:
    files = [f"{'d' * 100}/{n}.txt" for n in range(8000)]
    assert spawn.solorun("start", "--background", results, "--", "sh", "-c", "sleep 600", *files).wait() == 0
    fd = os.open(results, os.O_RDONLY)
    owner = read_owner(fd)
    os.close(fd)
    assert owner is not None
    assert owner.argv[:3] == ("sh", "-c", "sleep 600")
    assert owner.argv[-1].endswith(" more words")
    assert len((results / "run.json").read_bytes()) < 50_000
    assert spawn.solorun("stop", results).wait() == 0


def test_a_name_that_no_disk_takes_is_not_safe_to_start_in(spawn: Spawner, results: Path) -> None:
    said = spawn.solorun("check", "--json", results / ("n" * 256))
    assert said.wait() == 4
    assert "File name too long" in said.text()


THREADLESS = """
    import sys, threading
    import solorun.cli.main, solorun.cli.start, solorun.hold
    def none_left(self):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = none_left
    sys.exit(solorun.cli.main.main(["start", sys.argv[1], "--", "touch", sys.argv[1] + "/ran"]))
"""


def test_where_no_thread_is_left_the_command_has_not_run(spawn: Spawner, results: Path) -> None:
    said = spawn.python(THREADLESS, results)
    assert said.wait() == 1
    assert "ulimit -u" in said.text()
    assert not {"ran", "training.lock", "training.owner.json"} & names(results)
    assert spawn.solorun("start", results, "--", "true").wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="by /proc")
def test_who_writes_into_a_deleted_directory_is_nobodys_in_the_one_made_anew(spawn: Spawner, results: Path) -> None:
    stranger = spawn.python(
        """
        import os, shutil, signal, sys
        file = open(sys.argv[1] + "/training.log", "a")
        shutil.rmtree(sys.argv[1])
        os.mkdir(sys.argv[1])
        print("gone", flush=True)
        signal.pause()
        """,
        results,
    )
    stranger.wait_for("gone")
    said = spawn.solorun("recover", "--dry-run", results)
    assert said.wait() == 0, said.text()
    assert "nothing to do" in said.text()


def test_who_kills_pid_1_of_a_container_from_inside_is_told_that_only_the_outside_can(results: Path) -> None:
    error = _not_ended(results, "mine", StillRunning("starting", (1,)), Settings(), killed=True)
    assert "PID 1 of a container cannot be killed from inside it; its directory stays held" in error.evidence
    assert error.next_step == "end its container from outside, then there: solorun recover mine"
