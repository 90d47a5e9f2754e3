"""The heartbeat: written at every step, read at any moment."""

from __future__ import annotations

import contextlib
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solorun import progress
from solorun.progress import SIZE, Heartbeat, Progress, decode, read_progress

from .stage import wait_until

RUN = "20260101-000000-aaaaaaaa"


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr(progress.time, "time", lambda: self.now)

    def go(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def beat(fd: int) -> Iterator[Heartbeat]:
    found = Heartbeat(fd, RUN)
    assert found.claim()
    yield found
    found.close()


def seen(fd: int) -> Progress:
    found = read_progress(fd)
    assert found is not None
    return found


def test_what_is_written_is_read(clock: Clock, fd: int, beat: Heartbeat) -> None:
    clock.go(5)
    beat.advance(12, 300)
    assert seen(fd) == Progress(RUN, "training", 12, 300, clock.now, clock.now, 0.0, 0.0, 12)


def test_a_new_run_begins_with_a_first_beat(fd: int, beat: Heartbeat) -> None:
    assert (seen(fd).phase, seen(fd).step, seen(fd).rate, seen(fd).eta_s) == ("starting", 0, None, None)
    assert beat.run_id == seen(fd).run_id


def test_rate_and_time_left_follow_the_pace(clock: Clock, fd: int, beat: Heartbeat) -> None:
    for step in range(101, 111):
        beat.advance(step, 200)
        clock.go(0.5)
    found = seen(fd)
    assert found.rate == pytest.approx(2.0)
    assert found.eta_s == pytest.approx(45.0)
    assert found.first_step == 101


def test_a_night_on_a_full_disk_is_no_part_of_the_pace(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.advance(1, 10)
    clock.go(2.0)
    beat.advance(2, 10)
    clock.go(1.0)
    beat.begin("paused: disk full")
    clock.go(30_000.0)
    beat.finish("paused: disk full", 30_000.0)
    beat.begin("training")
    clock.go(1.0)
    beat.advance(3, 10)
    assert seen(fd).pace_s == pytest.approx(2.0, abs=0.01)
    assert seen(fd).longest_s < 10


def test_a_pause_before_the_first_step_of_a_resumed_run_is_no_part_of_the_pace(
    clock: Clock, fd: int, beat: Heartbeat
) -> None:
    beat.begin("paused: disk full")
    clock.go(60.0)
    beat.finish("paused: disk full", 60.0)
    beat.begin("training")
    for step in (501, 502):
        clock.go(2.0)
        beat.advance(step, 1000)
    assert (seen(fd).pace_s, seen(fd).first_step) == (pytest.approx(2.0, abs=0.01), 501)


def test_after_the_last_step_no_time_is_left(clock: Clock, fd: int, beat: Heartbeat) -> None:
    for step in (1, 2, 3):
        beat.advance(step, 2)
        clock.go(1)
    assert seen(fd).eta_s == 0


def test_without_a_total_there_is_a_rate_but_no_time_left(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.advance(1, 0)
    clock.go(1)
    beat.advance(2, 0)
    assert (seen(fd).rate, seen(fd).eta_s) == (1.0, None)


def test_the_longest_recent_step_is_remembered_and_fades(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.advance(1, 0)
    clock.go(10)
    beat.advance(2, 0)
    assert seen(fd).longest_s == 10
    for step in range(3, 40):
        clock.go(0.1)
        beat.advance(step, 0)
    assert 0.1 < seen(fd).longest_s < 5


def test_each_phase_has_its_own_longest_time(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.advance(1, 0)
    beat.begin("saving")
    clock.go(30)
    beat.finish("saving", 30)
    beat.begin("training")
    clock.go(1)
    beat.advance(2, 0)
    assert seen(fd).longest_s == pytest.approx(1)
    beat.begin("saving")
    assert (seen(fd).phase, seen(fd).longest_s, seen(fd).phase_since) == ("saving", 30, clock.now)


def test_a_beat_within_a_long_phase_moves_the_time_alone(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.begin("tokenizing")
    began = clock.now
    clock.go(40)
    beat.beat()
    assert (seen(fd).time, seen(fd).phase_since) == (clock.now, began)


def test_a_clock_that_is_set_back_breaks_nothing(clock: Clock, fd: int, beat: Heartbeat) -> None:
    beat.advance(1, 10)
    clock.go(-3600)
    beat.advance(2, 10)
    assert seen(fd).step == 2
    assert seen(fd).rate is None


@pytest.mark.parametrize(
    "phase", ["final evaluation", "", " ", "two\nlines", "évaluation", "x" * 500, "字" * 500, "\ud800"]
)
def test_a_phase_of_any_name_leaves_the_heartbeat_readable(fd: int, beat: Heartbeat, phase: str) -> None:
    beat.begin(phase)
    beat.advance(10**12, 10**12)
    assert seen(fd).step == 10**12


def test_a_phase_of_several_words_is_told_as_one(fd: int, beat: Heartbeat) -> None:
    beat.begin("final evaluation")
    assert seen(fd).phase == "final-evaluation"


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_single_wrong_byte_is_never_believed(at: int, flip: int) -> None:
    data = bytearray(a_line())
    whole = decode(bytes(data))
    assert whole is not None
    data[at] ^= flip
    assert decode(bytes(data)) in (None, whole)  # whole: the spaces and the newline around the checksum tell nothing


@given(st.binary(max_size=SIZE + 10))
def test_bytes_of_any_kind_are_nothing(data: bytes) -> None:
    assert decode(data) is None


@given(st.integers(0, SIZE - 1))
def test_a_line_cut_short_or_joined_from_two_is_nothing(at: int) -> None:
    one, two = a_line(), a_line(step=987_654, now=b"1800000999.125")
    assert decode(one[:at]) is None
    joined = one[:at] + two[at:]
    assert decode(joined) is None or joined in (one, two)


def a_line(step: int = 5, now: bytes = b"1800000000.000") -> bytes:
    text = (b"1 %s training %s 1 %d 100 %s 0.5 0.5" % (RUN.encode(), now, step, now)).ljust(SIZE - 10)
    return b"%s %08x\n" % (text, zlib.crc32(text))


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"x" * SIZE), os.truncate])
def test_a_damaged_file_tells_nothing(fd: int, beat: Heartbeat, results: Path, damage: Callable[..., object]) -> None:
    beat.advance(1, 2)
    path = results / "progress"
    if damage is os.truncate:
        os.truncate(path, 100)
    else:
        damage(path)
    assert read_progress(fd) is None
    beat.advance(2, 2)
    assert seen(fd).step == 2


def test_no_file_a_directory_or_a_fifo_tells_nothing_and_does_not_block(fd: int, results: Path) -> None:
    assert read_progress(fd) is None
    (results / "progress").mkdir()
    assert read_progress(fd) is None
    (results / "progress").rmdir()
    os.mkfifo(results / "progress")
    assert read_progress(fd) is None


def test_a_second_writer_of_the_same_run_is_refused_and_changes_nothing(fd: int, beat: Heartbeat) -> None:
    beat.advance(7, 9)
    second = Heartbeat(fd, RUN)
    assert not second.claim()
    second.close()
    assert seen(fd).step == 7


def test_after_the_first_writer_closed_the_second_may_write(fd: int) -> None:
    first = Heartbeat(fd, RUN)
    assert first.claim()
    first.close()
    second = Heartbeat(fd, RUN)
    assert second.claim()
    second.close()


def test_a_beat_after_closing_is_lost_and_hits_no_other_file(fd: int, results: Path) -> None:
    beat = Heartbeat(fd, RUN)
    beat.close()
    victim = os.open(results / "victim", os.O_RDWR | os.O_CREAT)  # likely gets the number that was closed
    beat.advance(1, 2)
    beat.close()
    assert os.fstat(victim).st_size == 0
    os.close(victim)


def test_a_full_disk_costs_the_beat_and_never_raises(fd: int) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            beat = Heartbeat(fd, RUN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            beat.claim()
            beat.advance(1, 2)
            beat.begin("saving")
            beat.beat()
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_line_whose_writer_is_interrupted_for_a_moment_is_read_again(
    fd: int, beat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat.advance(1, 2)
    real, looks = os.pread, iter((b"9", b"9"))  # the first byte belongs to another line, twice
    monkeypatch.setattr(os, "pread", lambda *what: (torn := next(looks, b"")) + real(*what)[len(torn) :])
    assert seen(fd).step == 1


def test_a_reader_that_looks_all_the_time_never_sees_a_torn_line(fd: int, beat: Heartbeat) -> None:
    pid = os.fork()
    if pid == 0:
        for step in range(1, 20_000):
            beat.advance(step, 20_000)
        os._exit(0)
    last = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        # A writer that the machine holds up in mid-line leaves no line at all until it goes on.
        step = wait_until(lambda: read_progress(fd)).step
        assert step >= last
        last = step
    assert seen(fd).step == 19_999
