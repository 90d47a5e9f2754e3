"""The copy of the log to where a person watches never makes a supervisor wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from solorun.mirror import Mirror

from .stage import Spawner, Terminal, label_of, wait_until

PATIENT = """
import sys
from solorun import supervisor
from solorun.cli.main import main
supervisor._LAST_COPY_S = 60.0  # a busy machine may let the other side of the terminal read late
sys.exit(main(sys.argv[1:]))
"""
"""The command, with time to copy the rest."""


def test_what_a_full_pipe_does_not_take_is_left_over_and_comes_later(results: Path, fd: int) -> None:
    text = b"".join(b"line %d\n" % n for n in range(40_000))
    (results / "training.log").write_bytes(text)
    read, write = os.pipe()
    mirror = Mirror(fd, 0, write)
    assert mirror.copy() is False
    mirror.finish(0.1)
    taken = b""
    while not mirror.copy():
        taken += os.read(read, 1 << 16)
    os.close(write)
    while data := os.read(read, 1 << 16):
        taken += data
    assert taken == text
    mirror.close()
    os.close(read)


def test_a_reader_that_is_gone_is_no_error(results: Path, fd: int) -> None:
    (results / "training.log").write_bytes(b"words\n")
    read, write = os.pipe()
    os.close(read)
    mirror = Mirror(fd, 0, write)
    assert mirror.copy() is True
    mirror.close()
    os.close(write)


def test_a_terminal_that_nobody_reads_does_not_keep_the_directory_held(
    results: Path, terminal: Callable[..., Terminal]
) -> None:
    terminal(sys.executable, "-m", "solorun", "start", results, "--", sys.executable, "-c", "print('x' * 1000000)")
    log = results / "training.log"
    wait_until(lambda: log.exists() and "Released lock" in log.read_text())
    wait_until(lambda: label_of(results) == 0)
    # It was never read: what is in the terminal's own buffer is all that a blocked supervisor would ever have written.


def test_what_was_printed_reaches_a_terminal_whole(
    spawn: Spawner, results: Path, terminal: Callable[..., Terminal]
) -> None:
    code = "print('\\n'.join(f'line {n}' for n in range(20000)))"
    solorun = spawn.program("solorun", PATIENT)
    shown = terminal(sys.executable, solorun, "start", results, "--", sys.executable, "-c", code)
    assert shown.wait() == 0
    lines = [line for line in shown.seen.splitlines() if line.startswith("line ")]
    assert lines == [f"line {n}" for n in range(20_000)]


def test_a_log_that_is_emptied_by_hand_goes_on_being_copied(results: Path, fd: int) -> None:
    log = results / "training.log"
    log.write_text("a long first line\n")
    read, write = os.pipe()
    mirror = Mirror(fd, 0, write)
    assert mirror.copy()
    log.write_text("")
    assert mirror.copy()  # looked at while it is empty, as a tick does
    log.write_text("anew\n")
    assert mirror.copy()
    assert os.read(read, 1 << 16) == b"a long first line\nanew\n"
    mirror.close()
    os.close(read)
    os.close(write)
