"""What a run leaves for later: `run.json`, the journal, the metrics."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun.hold import hold
from solorun.record import (
    RunRecord,
    append_line,
    append_metrics,
    ended,
    journal,
    last_run_id,
    new_run_id,
    read_events,
    read_record,
    write_record,
)

from .stage import Spawner, names, wait_until

RECORD = RunRecord("20260101-000000-aaaaaaaa", None, ("python3", "t.py"), "ada", "studio", 42, 1_800_000_000.0)


def test_a_record_comes_back_as_it_was_written(fd: int) -> None:
    full = ended(
        replace(RECORD, parent_run_id="p", fingerprint="f", first_step=1, last_step=9, total_steps=10),
        "interrupted", 1_800_000_060.0, exit_code=130, signal=2, why="SIGINT", cause="interrupted", stopped_by="ada",
        last_words="one\ntwo",
    )  # fmt: skip
    for record in (RECORD, full):
        write_record(fd, record)
        assert read_record(fd) == record


def test_there_may_be_no_record(fd: int) -> None:
    assert read_record(fd) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"x"', "{}", '{"run_id": "x"}', "[" * 5000])
def test_a_damaged_record_is_none(fd: int, results: Path, text: str) -> None:
    (results / "run.json").write_text(text)
    assert read_record(fd) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("run_id", 5), ("user", 7), ("host", None), ("state", ["x"]), ("started", "now"), ("last_step", "12"),
     ("pid", "1"), ("program", [1, 2]), ("program", None), ("why", 3), ("parent_run_id", 3), ("total_steps", {}),
     ("boot", 1), ("cause", None), ("stopped_by", []), ("last_words", ["x"]), ("log_at", "0")],
)  # fmt: skip
def test_a_record_with_a_value_of_another_kind_is_none(fd: int, results: Path, key: str, value: Any) -> None:
    write_record(fd, RECORD)
    facts = json.loads((results / "run.json").read_text())
    facts[key] = value
    (results / "run.json").write_text(json.dumps(facts))
    assert read_record(fd) is None


def test_keys_of_a_later_version_are_tolerated(fd: int, results: Path) -> None:
    write_record(fd, RECORD)
    facts = json.loads((results / "run.json").read_text())
    (results / "run.json").write_text(json.dumps({**facts, "colour": "blue"}))
    assert read_record(fd) == RECORD


def test_a_fifo_in_the_records_place_does_not_block(fd: int, results: Path) -> None:
    os.mkfifo(results / "run.json")
    os.mkfifo(results / "events.jsonl")
    assert read_record(fd) is None
    assert list(read_events(fd)) == []


def test_a_record_is_replaced_whole_or_not_at_all(fd: int, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(fd, RECORD)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_record(fd, replace(RECORD, state="completed"))
    assert read_record(fd) == RECORD
    assert names(results) == {"run.json"}


def test_a_full_disk_leaves_the_old_record(fd: int, results: Path) -> None:
    write_record(fd, RECORD)
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            write_record(fd, replace(RECORD, state="completed"))
        except OSError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert read_record(fd) == RECORD
    assert names(results) == {"run.json"}


def test_events_come_back_in_order(fd: int) -> None:
    journal(fd, "r", "started", 1.0, pid=42)
    journal(fd, "r", "saved", 2.0, step=10)
    found = list(read_events(fd))
    assert found == [
        {"schema": 1, "time": 1.0, "run_id": "r", "event": "started", "pid": 42},
        {"schema": 1, "time": 2.0, "run_id": "r", "event": "saved", "step": 10},
    ]


def test_a_torn_last_line_is_passed_over_and_not_joined_onto(fd: int, results: Path) -> None:
    journal(fd, "r", "started", 1.0)
    with (results / "events.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "ti')
    assert [event["event"] for event in read_events(fd)] == ["started"]
    journal(fd, "r", "saved", 2.0)
    assert [event["event"] for event in read_events(fd)] == ["started", "saved"]


def test_lines_that_are_no_events_are_passed_over(fd: int, results: Path) -> None:
    (results / "events.jsonl").write_bytes(
        b'\n[]\n5\n{}\n{"event": 5}\n\xff\xfe\n{"event": "x"}\n' + b"[" * 9000 + b"\n"
    )
    assert [event["event"] for event in read_events(fd)] == ["x"]


def test_only_the_events_that_are_asked_for_are_read(fd: int) -> None:
    for n, name in enumerate(("started", "saved", "ended", "saved")):
        journal(fd, "r", name, float(n), note="started, they said")
    assert [event["time"] for event in read_events(fd, ("started", "ended"))] == [0.0, 2.0]


def test_only_the_end_of_a_journal_is_read_where_that_is_enough(fd: int, results: Path) -> None:
    for n in range(100):
        journal(fd, "r", "saved", float(n))
    line = (results / "events.jsonl").stat().st_size // 100
    assert [event["time"] for event in read_events(fd, last_bytes=3 * line + 5)] == [97.0, 98.0, 99.0]
    assert len(list(read_events(fd, last_bytes=1 << 30))) == 100


def test_a_long_journal_is_read_flat_in_memory(spawn: Spawner, results: Path) -> None:
    with (results / "events.jsonl").open("wb") as file:
        file.write(b'{"schema": 1, "time": 1.0, "run_id": "r", "event": "started", "pid": 1}\n')
        file.write((b'{"event": "saved", "pad": "' + b"x" * 900 + b'"}\n') * 40_000)
        file.write(b"y" * 60_000_000 + b"\n")  # a crash left a line without an end
        file.write(b'{"schema": 1, "time": 2.0, "run_id": "r", "event": "ended", "state": "completed"}\n')
    code = """
        import resource, sys
        from pathlib import Path
        from solorun.history import runs_of
        def peak():
            if sys.platform == "darwin":
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            # Linux adds up to that what the starter of this process had, before it was this program.
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        before = peak()
        (past,) = runs_of(Path(sys.argv[1]))
        print(past.outcome, peak() - before)
    """
    child = spawn.python(code, results)
    assert child.wait(60) == 0, child.text()
    told, grown = child.text().split()
    assert told == "completed"
    assert int(grown) < 20_000_000


def test_a_metrics_line_bears_the_run_id(fd: int, results: Path) -> None:
    append_metrics(fd, "r", {"step": 3, "loss": 0.5})
    assert json.loads((results / "metrics.jsonl").read_text()) == {"run_id": "r", "step": 3, "loss": 0.5}


APPENDING = """
    import os, signal, sys
    from solorun.record import append_line
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    fd = os.open(sys.argv[1], os.O_RDONLY)
    n = 0
    while not over:
        append_line(fd, "events.jsonl", {"event": "x", "writer": os.getpid(), "n": n, "pad": "y" * 300})
        n += 1
        if n == 20:
            print("under way", flush=True)
"""


def test_killed_in_mid_append_a_journal_has_whole_lines_and_one_torn_at_most(spawn: Spawner, results: Path) -> None:
    path = results / "events.jsonl"
    for _ in range(4):
        child = spawn.python(APPENDING, results)
        child.wait_for("under way")
        size = path.stat().st_size
        wait_until(lambda size=size: path.stat().st_size > size + 5000)
        child.signal(signal.SIGKILL)
        child.wait()
    torn = 0
    for line in path.read_bytes().split(b"\n"):
        try:
            assert not line or json.loads(line)["event"] == "x"
        except ValueError:
            torn += 1
    assert torn <= 4


def test_lines_of_two_writers_do_not_mix(spawn: Spawner, results: Path) -> None:
    children = [spawn.python(APPENDING, results) for _ in range(2)]
    for child in children:
        child.wait_for("under way")
    for child in children:
        child.signal(signal.SIGTERM)  # at the end of a line: one that is killed may leave a half of its own
        assert child.wait() == 0
    lines = (results / "events.jsonl").read_bytes().splitlines()
    writers = {json.loads(line)["writer"] for line in lines if line}
    assert writers == {child.pid for child in children}


def test_a_journal_that_cannot_be_written_says_so(fd: int, results: Path) -> None:
    (results / "events.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        append_line(fd, "events.jsonl", {"event": "x"})


def test_run_ids_sort_by_start_and_differ_within_a_second() -> None:
    one, two, later = new_run_id(1_800_000_000), new_run_id(1_800_000_000), new_run_id(1_800_000_001)
    assert re.fullmatch(r"20270115-080000-[0-9a-f]{8}", one)
    assert one != two
    assert max(one, two) < later


def test_the_last_run_is_named_by_the_journal_where_its_record_is_damaged(results: Path) -> None:
    with hold(results, exit_on_stop=False) as run:
        run_id = run.run_id
    fd = os.open(results, os.O_RDONLY)
    try:
        assert last_run_id(fd) == run_id
        (results / "run.json").write_bytes(b'{"run_id": "20')
        assert last_run_id(fd) == run_id
        (results / "run.json").unlink()
        assert last_run_id(fd) is None, "nothing was damaged: nobody holds this directory up for a line of its journal"
    finally:
        os.close(fd)
