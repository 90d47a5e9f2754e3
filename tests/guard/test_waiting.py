"""The queue of a results directory: in order, visible, called off, and never blocked by the dead."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solorun import process, supervisor, waiting
from solorun.claim import Claim, claim
from solorun.errors import Held, NotSafe
from solorun.handshake import Report, Waiting
from solorun.launch import LaunchPlan, plan_command
from solorun.owner import Here
from solorun.settings import Settings
from solorun.start import Queued, in_foreground
from solorun.supervisor import Audience

from .stage import (
    HOLDING,
    PYTHON,
    Child,
    Spawner,
    Terminal,
    a_dead_pid,
    label_of,
    names,
    wait_until,
)

HERE = Here("studio", "studio/1", "boot-1", "pid:[1]")


def a_waiter(pid: int = 1, here: Here | None = None) -> waiting.Waiter:
    me = process.identify_self()
    at = replace(me, pid=pid, here=here or me.here) if pid != os.getpid() else me
    return waiting.Waiter("1-1-aa.json", at, "ada", ("python3", "train.py"), 1795469400.0)


def test_a_start_with_a_command_of_megabytes_is_seen_and_can_be_called_off(results: Path) -> None:
    ticket = waiting.join(results, ("train", *(f"data-{n}.bin" for n in range(100_000))), time.time())
    assert [waiter.process for waiter in waiting.read_queue(results)] == [process.identify_self()]
    assert len(waiting.call_off(results, os.getpid())) == 1
    assert ticket.is_called_off()


def test_a_ticket_is_read_as_it_was_written() -> None:
    one = a_waiter(os.getpid())
    assert waiting.decode(one.ticket, waiting.encode(one)) == one


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"here": 1}', b'{"pid": "x"}', b"[" * 100_000])
def test_what_is_no_ticket_is_none(data: bytes) -> None:
    assert waiting.decode("x", data) is None


def test_whoever_is_dead_or_of_an_earlier_boot_or_silent_elsewhere_does_not_count() -> None:
    here = process.here()
    assert waiting.counts(a_waiter(os.getpid()), 0, here)
    assert not waiting.counts(a_waiter(a_dead_pid()), 0, here)
    assert not waiting.counts(a_waiter(1, replace(here, boot="earlier")), 0, here)
    elsewhere = a_waiter(1, replace(here, machine="other", boot="other"))
    assert waiting.counts(elsewhere, waiting.FAR_AWAY_S - 1, here)
    assert not waiting.counts(elsewhere, waiting.FAR_AWAY_S + 1, here)


def test_the_first_come_is_the_first_in_the_queue(results: Path) -> None:
    first, second = (waiting.join(results, ("train", name), time.time()) for name in ("a", "b"))
    assert first.ahead() == ()
    assert [one.argv for one in second.ahead()] == [("train", "a")]
    assert [one.argv[1] for one in waiting.read_queue(results)] == ["a", "b"]
    first.leave()
    assert second.ahead() == ()
    second.leave()
    assert names(results) == set()


def test_tickets_of_the_dead_are_passed_over_and_swept(results: Path) -> None:
    ticket = waiting.join(results, ("train",), time.time())
    dead = replace(a_waiter(a_dead_pid()), ticket="0-0-00.json")
    (results / "waiting" / dead.ticket).write_bytes(waiting.encode(dead))
    (results / "waiting" / "0-1-00.json").write_bytes(b"{torn")
    assert ticket.ahead() == ()
    ticket.leave()
    assert names(results / "waiting") == {"0-1-00.json"}  # nobody's: left for its owner to look at


def queued(spawn: Spawner, results: Path, *command: str | Path) -> Child:
    child = spawn.solorun("start", results, "--wait", "--", *command)
    child.wait_for("waiting for")
    return child


def held(spawn: Spawner, results: Path) -> Child:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    return child


def noting(name: str, notes: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", f"open({str(notes)!r}, 'a').write('{name}\\n')")


def test_those_who_wait_run_one_after_another_in_the_order_they_came(
    spawn: Spawner, results: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    first = held(spawn, results)
    line = [queued(spawn, results, *noting(name, notes)) for name in ("a", "b", "c")]
    assert f"waiting for PID {first.pid}" in line[0].text()
    assert "(2 ahead in the queue)" in line[2].text()
    status = spawn.solorun("status", "--json", results)
    assert status.wait() == 0
    (row,) = json.loads(status.text())["runs"]
    assert [waiter["pid"] for waiter in row["waiting"]] == [child.pid for child in line]
    shown = spawn.solorun("status", results)
    assert shown.wait() == 0
    assert f"waiting: PID {line[0].pid} of {row['waiting'][0]['user']} for" in shown.text()
    first.signal(signal.SIGINT)
    first.wait()
    assert [child.wait() for child in line] == [0, 0, 0]
    assert notes.read_text().split() == ["a", "b", "c"]
    assert not (results / "waiting").exists()


def test_a_waiting_start_can_be_called_off_and_the_run_goes_on(spawn: Spawner, results: Path) -> None:
    first = held(spawn, results)
    one, two = (queued(spawn, results, "echo", "never") for _ in range(2))
    off = spawn.solorun("stop", results, "--waiting", str(one.pid))
    assert off.wait() == 0
    assert f"called off: PID {one.pid}" in off.text()
    assert one.wait() == 3
    assert "was called off" in one.text()
    assert two.popen.poll() is None
    all_of_them = spawn.solorun("stop", results, "--waiting")
    assert all_of_them.wait() == 0
    assert two.wait() == 3
    again = spawn.solorun("stop", results, "--waiting")
    assert again.wait() == 0
    assert "nobody waits" in again.text()
    assert label_of(results) == first.pid


def test_ctrl_c_at_the_terminal_calls_the_wait_off(
    spawn: Spawner, results: Path, terminal: Callable[..., Terminal]
) -> None:
    first = held(spawn, results)
    shown = terminal(sys.executable, "-m", "solorun", "start", results, "--wait", "--", "true")
    shown.wait_for("Ctrl-C calls it off")
    shown.type(b"\x03")
    assert shown.wait() == 130
    assert "solorun: called off; nothing was started" in shown.seen
    assert "Traceback" not in shown.seen
    assert not (results / "waiting").exists()
    assert label_of(results) == first.pid


def test_neither_a_killed_nor_a_suspended_start_holds_up_those_behind_it(spawn: Spawner, results: Path) -> None:
    first = held(spawn, results)
    killed, suspended = (queued(spawn, results, "true") for _ in range(2))
    last = queued(spawn, results, "true")
    killed.signal(signal.SIGKILL)
    suspended.signal(signal.SIGSTOP)
    killed.wait()
    first.signal(signal.SIGINT)
    first.wait()
    assert last.wait() == 0
    suspended.signal(signal.SIGCONT)
    assert suspended.wait() == 0


def test_a_start_that_does_not_wait_cannot_slip_in_before_those_who_do(results: Path, spawn: Spawner) -> None:
    ticket = waiting.join(results, ("train",), time.time())
    child = spawn.solorun("start", results, "--", "echo", "never")
    assert child.wait() == 3
    assert f"is free, but 1 wait for it, first PID {os.getpid()}" in child.text()
    ticket.leave()
    assert spawn.solorun("start", results, "--", "true").wait() == 0


def test_a_background_start_waits_in_the_background(spawn: Spawner, results: Path) -> None:
    first = held(spawn, results)
    child = spawn.solorun("start", results, "--background", "--wait", "--", "sleep", "60")
    assert child.wait() == 0
    assert f"waiting for PID {first.pid}" in child.text()
    assert "off:   solorun stop" in child.text()
    first.signal(signal.SIGINT)
    first.wait()
    wait_until(lambda: process.argv(label_of(results))[:1] == ("sleep",))
    os.kill(label_of(results), signal.SIGKILL)
    wait_until(lambda: label_of(results) == 0)


def test_a_start_waits_behind_an_old_style_trainer_too(spawn: Spawner, results: Path) -> None:
    old = spawn.python("import sys, time; print('up', flush=True); time.sleep(600)")
    old.wait_for("up")
    (results / "training.lock").write_text(f"{old.pid}\n")
    child = queued(spawn, results, "sh", "-c", f"{PYTHON} -c 'print(1)'")
    old.popen.kill()
    old.wait()
    assert child.wait() == 0


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """A supervisor in this very process takes in orphans: those of later tests shall go where orphans go."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(supervisor._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.usefixtures("in_this_process")
def test_a_turn_is_not_taken_while_the_device_is_used(results: Path) -> None:
    """Asked when the turn comes, not when the start was typed: by then another run may use the accelerator."""
    asked = 0
    told: list[Report] = []

    def require_safe() -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise NotSafe("cuda 0 is used by PID 77")

    plan = plan_command(("true",), results, {}, "background")
    ended = in_foreground(plan, results, Settings(), Queued(require_safe), Audience(None, told.append))
    assert (ended.exit_code, asked) == (0, 3)
    assert [one.behind for one in told if isinstance(one, Waiting)] == ["cuda 0 is used by PID 77"]


def test_a_ticket_is_taken_by_its_owner_or_by_a_call_off_and_never_by_both(results: Path) -> None:
    for called_off_first in (True, False):
        ticket = waiting.join(results, ("train",), time.time())
        if called_off_first:
            assert len(waiting.call_off(results, None)) == 1
        assert ticket.redeem() is not called_off_first
        assert waiting.call_off(results, None) == []
        ticket.leave()


def test_a_call_off_that_comes_as_a_start_gets_in_is_kept(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def claimed_as_it_is_called_off(*arguments: Any) -> Claim:
        made = claim(*arguments)
        assert len(waiting.call_off(results, None)) == 1
        return made

    monkeypatch.setattr("solorun.start.claim", claimed_as_it_is_called_off)
    plan = LaunchPlan(("true",), results, {}, "foreground")
    with pytest.raises(Held, match="called off"):
        in_foreground(plan, results, Settings(), Queued(lambda: None), Audience(None))
    monkeypatch.undo()
    claim(results, time.time).lock.release()  # it is free again
    assert "events.jsonl" not in names(results)


def test_who_called_a_start_off_that_had_just_got_in_is_told_that_it_was_too_late(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = waiting.join(results, ("train",), time.time())
    seen = waiting.read_queue(results)
    assert ticket.redeem()
    monkeypatch.setattr(waiting, "read_queue", lambda _directory: seen)
    assert waiting.call_off(results, None) == []
