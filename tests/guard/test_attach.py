"""Watching a live run: it ends with the run or with the watcher, and the run never suffers from it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .stage import Child, Spawner, Terminal, label_of, run_record, wait_until

COUNTING = """
import sys, time, solorun
with solorun.hold(sys.argv[1], announce=lambda line: None) as run:
    print("holding", flush=True)
    step = 0
    while not run.should_stop:
        step += 1
        run.progress(step, 100000)
        run.log(f"step {step}")
        time.sleep(0.01)
    run.log("leaving " + run.stop_reason)
"""

STUBBORN = COUNTING.replace("import sys,", "import signal, sys,").replace(
    'print("holding"', 'signal.signal(signal.SIGTERM, signal.SIG_IGN); print("holding"'
)
"""Hears no request."""

Open = Callable[..., Terminal]


def counting(spawn: Spawner, results: Path, code: str = COUNTING) -> Child:
    """By a program on disk: its words would stand in the heading that a watcher is shown before any line of the log."""
    child = spawn(sys.executable, str(spawn.program("counting.py", code)), str(results))
    child.wait_for("holding")
    return child


def attached(terminal: Open, results: Path, *flags: str) -> Terminal:
    shown = terminal(sys.executable, "-m", "solorun", "attach", results, *flags)
    shown.wait_for("step ")
    return shown


def test_every_line_is_shown_to_the_end_and_how_the_run_ended(spawn: Spawner, results: Path) -> None:
    child = counting(spawn, results)
    watcher = spawn.solorun("attach", results, "-n", "0")
    watcher.wait_for("step ")
    child.signal(signal.SIGTERM)
    child.wait()
    assert watcher.wait() == 143
    steps = [int(line.split()[1]) for line in watcher.text().splitlines() if line.startswith("step ")]
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert "leaving SIGTERM\nReleased lock\n" in watcher.text()
    assert f"interrupted at step {steps[-1]}" in watcher.text()


SLOW_TO_LET_GO = """
import time
from solorun.lock import DirectoryLock
withdraw = DirectoryLock.withdraw
def slowly(lock):
    withdraw(lock)
    time.sleep(1.5)
DirectoryLock.withdraw = slowly
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell who holds a lock")
def test_a_run_that_takes_long_to_let_go_is_watched_to_its_last_line(spawn: Spawner, results: Path) -> None:
    child = counting(spawn, results, SLOW_TO_LET_GO + COUNTING)
    watcher = spawn.solorun("attach", results)
    watcher.wait_for("step ")
    child.signal(signal.SIGTERM)
    assert watcher.wait() == 143
    assert "leaving SIGTERM\nReleased lock\n" in watcher.text()


def test_ctrl_c_asks_and_d_leaves_the_run_alone(spawn: Spawner, results: Path, terminal: Open) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results)
    assert f"PID {child.pid}" in shown.seen
    shown.type(b"\x03")
    shown.wait_for("d = leave it running, s = stop it")
    shown.type(b"\n")
    before = len(shown.seen)
    wait_until(lambda: "step " in shown.read()[before:])  # Enter: it goes on
    shown.type(b"\x03")
    wait_until(lambda: shown.read().count("d = leave it running") == 2)
    shown.type(b"d\n")
    assert shown.wait() == 0
    assert "left; it goes on" in shown.seen
    assert "Traceback" not in shown.seen
    assert label_of(results) == child.pid


def test_s_stops_the_run_while_its_last_lines_are_shown(spawn: Spawner, results: Path, terminal: Open) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results)
    shown.type(b"\x03")
    shown.wait_for("d = leave it running")
    shown.type(b"s\n")
    assert shown.wait() == 143
    assert "leaving SIGTERM" in shown.seen
    assert "interrupted at step" in shown.seen
    assert child.wait() == 143
    assert run_record(results)["state"] == "interrupted"


def test_only_a_whole_word_is_an_answer(spawn: Spawner, results: Path, terminal: Open) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results)
    for count, words in ((1, b"show me\n"), (2, b"due\n")):
        shown.type(b"\x03")
        wait_until(lambda count=count: shown.read().count("d = leave it running") == count)  # type: ignore[misc]
        shown.type(words)
        before = len(shown.seen)
        wait_until(lambda before=before: "step " in shown.read()[before:])  # type: ignore[misc]
    assert label_of(results) == child.pid


def test_leaving_while_it_is_being_stopped_does_not_say_that_it_goes_on(
    spawn: Spawner, results: Path, terminal: Open
) -> None:
    counting(spawn, results, STUBBORN)
    shown = attached(terminal, results)
    shown.type(b"\x03")
    shown.wait_for("d = leave it running")
    shown.type(b"s\n")
    shown.wait_for("asking PID")
    shown.type(b"\x03")
    wait_until(lambda: shown.read().count("d = leave it running") == 2)
    shown.type(b"d\n")
    assert shown.wait() == 0
    assert "left; it was asked to stop" in shown.seen


def test_a_stop_that_did_not_stop_says_so_and_may_be_asked_for_again(
    spawn: Spawner, results: Path, terminal: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "solorun.toml").write_text("grace_s = 0.5\n")
    monkeypatch.chdir(tmp_path)
    child = counting(spawn, results, STUBBORN)
    shown = attached(terminal, results)
    for count in (1, 2):
        shown.type(b"\x03")
        wait_until(lambda count=count: shown.read().count("d = leave it running") == count)  # type: ignore[misc]
        shown.type(b"s\n")
        # The last line of a stop: until it is said, another one would not be begun.
        wait_until(lambda count=count: shown.read().count("solorun stop --kill") == count)  # type: ignore[misc]
        assert shown.seen.count("still running after") == count
    assert label_of(results) == child.pid


def test_ctrl_c_twice_leaves_and_never_stops(spawn: Spawner, results: Path, terminal: Open) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results)
    shown.type(b"\x03")
    shown.wait_for("d = leave it running")
    shown.type(b"\x03")
    assert shown.wait() == 0
    assert label_of(results) == child.pid


@pytest.mark.parametrize(("flag", "code"), [("detach", 0), ("stop", 143)])
def test_the_answer_can_be_given_beforehand(
    spawn: Spawner, results: Path, terminal: Open, flag: str, code: int
) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results, "--on-interrupt", flag)
    shown.type(b"\x03")
    assert shown.wait() == code
    assert "d = leave" not in shown.seen
    assert (label_of(results) == child.pid) is (flag == "detach")


def test_a_watcher_whose_line_is_cut_leaves_the_run_alone(spawn: Spawner, results: Path, terminal: Open) -> None:
    child = counting(spawn, results)
    shown = attached(terminal, results)
    os.kill(shown.pid, signal.SIGHUP)
    shown.wait()
    assert label_of(results) == child.pid
    assert child.popen.poll() is None


def test_without_a_terminal_an_interrupt_leaves(spawn: Spawner, results: Path) -> None:
    child = counting(spawn, results)
    watcher = spawn.solorun("attach", results)
    watcher.wait_for("step ")
    watcher.signal(signal.SIGINT)
    assert watcher.wait() == 0
    assert label_of(results) == child.pid


def test_where_nothing_is_live_it_says_how_the_last_run_ended(spawn: Spawner, results: Path) -> None:
    none = spawn.solorun("attach", results)
    assert none.wait() == 1
    assert f"no run is live in '{results}'" in none.text()
    assert spawn.solorun("start", results, "--", "true").wait() == 0
    over = spawn.solorun("attach", results)
    assert over.wait() == 1
    assert "the last one: completed" in over.text()
    missing = spawn.solorun("attach", results / "nowhere")
    assert missing.wait() == 1
    assert "Traceback" not in missing.text() + over.text() + none.text()


def test_an_old_style_trainer_can_be_watched_too(spawn: Spawner, results: Path) -> None:
    old = spawn.python("import sys, time; print('up', flush=True); time.sleep(600)")
    old.wait_for("up")
    (results / "training.lock").write_text(f"{old.pid}\n")
    (results / "training.log").write_text("its words\n")
    watcher = spawn.solorun("attach", results)
    watcher.wait_for("its words")
    old.popen.kill()
    old.wait()
    assert watcher.wait() == 0
    assert "the run is over" in watcher.text()


def test_a_run_that_is_no_longer_in_tmux_cannot_be_entered(spawn: Spawner, results: Path) -> None:
    counting(spawn, results)
    watcher = spawn.solorun("attach", results, "--tmux")
    assert watcher.wait() == 1
    assert "does not live in a tmux session" in watcher.text()
