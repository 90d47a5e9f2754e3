"""The log of a run: its last lines, and following it."""

from __future__ import annotations

import io
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solorun.logs import LogFile, follow, for_terminal, last_lines

from .stage import wait_until


@pytest.fixture
def log(results: Path) -> Path:
    return results / "training.log"


def test_the_last_lines_of_a_log(log: Path) -> None:
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, 2) == ["two", "three"]
    assert last_lines(log, 9) == ["one", "two", "three"]
    assert last_lines(log, 0) == []


def test_a_last_line_without_its_end_counts_as_a_line(log: Path) -> None:
    log.write_text("one\ntwo")
    assert last_lines(log, 1) == ["two"]


def test_empty_lines_are_lines(log: Path) -> None:
    log.write_text("one\n\n\n")
    assert last_lines(log, 2) == ["", ""]
    log.write_text("")
    assert last_lines(log, 2) == []


def test_bytes_that_are_no_text_are_shown_as_such(log: Path) -> None:
    log.write_bytes(b"ok\n\xff\xfe\n")
    assert last_lines(log, 1) == ["\ufffd\ufffd"]


def test_a_missing_log_is_an_error(log: Path) -> None:
    with pytest.raises(FileNotFoundError):
        last_lines(log, 1)


def test_the_end_of_a_big_log_is_read_without_its_beginning(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.open("wb") as file:
        file.truncate(1 << 30)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    read = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, _mode: Counting(path))
    assert last_lines(log, 2) == ["last but one", "last"]
    assert sum(read) <= 1 << 17


class Following:
    """A thread that follows a log."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.text = ""
        self.looks = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(path, options))
        self.thread.start()

    def run(self, path: Path, options: dict[str, Any]) -> None:
        for part in follow(path, self.until, poll_s=0.01, **options):
            self.text += part

    def until(self) -> bool:
        self.looks += 1
        return self.over.is_set()

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.text, what=lambda: f"{words!r} in {self.text!r}")

    def wait_for_a_look(self) -> None:
        now = self.looks
        wait_until(lambda: self.looks > now + 1)


@pytest.fixture
def following(log: Path) -> Iterator[Any]:
    started: list[Following] = []

    def start(**options: Any) -> Following:
        started.append(Following(log, **options))
        started[-1].wait_for_a_look()
        return started[-1]

    yield start
    for one in started:
        one.over.set()
        one.thread.join(10)


def append(log: Path, text: str | bytes) -> None:
    with log.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def test_what_is_appended_is_followed_and_what_was_there_is_not(log: Path, following: Any) -> None:
    append(log, "old\n")
    one = following()
    append(log, "new\n")
    one.wait_for("new\n")
    assert one.text == "new\n"


def test_from_the_beginning_what_was_there_is_told_too(log: Path, following: Any) -> None:
    append(log, "old\n")
    one = following(start=0)
    one.wait_for("old\n")


def test_a_log_that_appears_later_is_followed_from_its_beginning(log: Path, following: Any) -> None:
    one = following()
    append(log, "first line\n")
    one.wait_for("first line\n")


def test_a_truncated_log_is_followed_from_its_new_beginning(log: Path, following: Any) -> None:
    append(log, "a long old content\n")
    one = following()
    os.truncate(log, 0)
    one.wait_for_a_look()
    append(log, "again\n")
    one.wait_for("again\n")
    assert one.text == "again\n"


def test_a_replaced_log_is_followed_and_the_end_of_the_old_one_not_lost(log: Path, following: Any) -> None:
    append(log, "x\n")
    one = following()
    append(log, "end of the old\n")
    log.rename(log.with_name("training.log.1"))
    append(log, "begin of the new\n")
    one.wait_for("begin of the new\n")
    assert one.text == "end of the old\nbegin of the new\n"


def test_a_log_that_is_deleted_and_comes_back_is_followed(log: Path, following: Any) -> None:
    append(log, "x\n")
    one = following()
    log.rename(log.with_name("gone"))
    one.wait_for_a_look()
    append(log, "back\n")
    one.wait_for("back\n")


def test_a_character_that_arrives_in_two_halves_is_whole(log: Path, following: Any) -> None:
    append(log, "x")
    one = following()
    halves = "é".encode()
    append(log, b"caf" + halves[:1])
    one.wait_for("caf")
    append(log, halves[1:] + b"!\n")
    one.wait_for("!\n")
    assert one.text == "café!\n"


def test_a_terminal_is_never_commanded_by_a_log() -> None:
    assert for_terminal("\x1b[2Jred\x07\b\x9b5n\0 ok é 字\tcol\r\n") == "�[2Jred���5n� ok é 字\tcol\r\n"


def test_lines_are_appended_and_never_truncate(fd: int, log: Path) -> None:
    append(log, "earlier\n")
    one = LogFile(fd)
    one.write("line")
    one.write("café \ud800")
    one.close()
    assert log.read_bytes() == "earlier\nline\ncafé ?\n".encode()


def test_a_log_that_cannot_be_written_does_not_end_the_run(fd: int) -> None:
    pid = os.fork()
    if pid == 0:
        one = LogFile(fd)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        one.write("line")
        os._exit(42)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_what_a_full_disk_cost_the_log_is_said_once_when_there_is_room(
    fd: int, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended, real = LogFile(fd), os.write
    appended.write("before")
    with monkeypatch.context() as full:
        rest = [4]

        def fills_up(number: int, data: bytes) -> int:
            if not rest:
                raise OSError(28, "No space left on device")
            return real(number, data[: rest.pop()])

        full.setattr(os, "write", fills_up)
        appended.write("cut off")
        appended.write("lost")
    appended.write("after")
    appended.write("and on")
    appended.close()
    said = "solorun: 2 lines are missing here: the log could not be written"
    assert log.read_text().splitlines() == ["before", "cut ", said, "after", "and on"]


def test_a_log_knows_whether_it_is_the_standard_output(fd: int, log: Path) -> None:
    assert not LogFile(fd).is_stdout
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 1)
        os._exit(42 if LogFile(fd).is_stdout else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
