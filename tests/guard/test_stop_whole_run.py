"""A stop ends the whole run: workers, sessions of their own, what outlives its trainer, and what is suspended."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from solorun import patience, process, stop
from solorun.cli.main import main
from solorun.owner import Alive, encode_owner
from solorun.patience import StopPolicy
from solorun.stop import Killed, StillRunning, Stopped, WasNotRunning
from solorun.target import Pursuit, Target

from .stage import (
    DEADLINE_S,
    HOLDING,
    PYTHON,
    Child,
    Spawner,
    a_dead_pid,
    events,
    label_of,
    names,
    owner_of,
    quoted,
    run_record,
    wait_until,
)  # fmt: skip

PATIENT = StopPolicy(graceful_s=60)


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_TERM_GRACE_S", 0.5)
    monkeypatch.setattr(stop, "_LEFTOVERS_S", 0.3)
    # What a killed process, or a trainer that has saved, needs to be gone, a busy machine decides.
    monkeypatch.setattr(patience, "_KILL_GRACE_S", DEADLINE_S)
    monkeypatch.setattr(patience, "_AFTER_SAVE_S", DEADLINE_S)


def reaped(child: Child) -> threading.Thread:
    thread = threading.Thread(target=child.popen.wait, daemon=True)
    thread.start()
    return thread


def holding(spawn: Spawner, results: Path, code: str) -> Child:
    child = spawn.python(code, results)
    child.wait_for("holding")
    return child


FAMILY = """
import os, signal, subprocess, sys, time, solorun
def deaf():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
there, arrived = os.pipe()
def work():
    os.write(arrived, b".")
    while True:
        time.sleep(1)
with solorun.hold(sys.argv[1], settle_s=0) as run:
    deaf()
    if os.fork() == 0:                                   # a data worker: shares the lock, has no id of its own
        if os.fork() == 0:
            os.setsid()
        work()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:                               # neither a parent nor an id tells of it: only its lock
            work()
        os._exit(0)
    worker = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
    os.waitpid(between, 0)
    for _ in range(3):
        os.read(there, 1)
    print("holding", flush=True)
    while not (len(sys.argv) > 2 and run.should_stop):
        time.sleep(0.01)
"""
"""A trainer by hand that hears nothing, with a worker, its child, an orphan, and a session of its own."""


def test_kill_ends_every_process_of_a_trainer_that_was_started_by_hand(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, FAMILY)
    wait_until(lambda: len(spawn.descendants()) == 5)
    reaped(child)
    result = stop.stop(results, StopPolicy(0.2, kill=True))
    assert isinstance(result, Killed)
    assert result.signal == signal.SIGKILL
    assert spawn.descendants() == []
    assert not names(results) & {"training.lock", "training.owner.json"}
    record = run_record(results)
    assert (record["state"], record["signal"]) == ("killed", signal.SIGKILL)
    assert [name for name in events(results) if name in ("escalated", "killed", "ended")] == [
        "escalated",
        "killed",
        "ended",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(results)
        assert main(["status", "--exit-code", "."]) == 0


def test_workers_that_outlive_a_killed_trainer_are_found_by_its_lock_alone(spawn: Spawner, results: Path) -> None:
    code = """
        import os, sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0):
            if os.fork() == 0:
                time.sleep(600)
            print("holding", flush=True)
            time.sleep(600)
    """
    child = holding(spawn, results, code)
    child.signal(signal.SIGKILL)
    child.wait()
    (worker,) = spawn.descendants()
    assert process.carriers(run_record(results)["run_id"]) == []
    told: list[str] = []
    assert isinstance(stop.stop(results, PATIENT, tell=told.append), Stopped)
    assert told[0] == f"asking PID {worker.pid} to stop (SIGTERM)"
    assert spawn.descendants() == []
    assert label_of(results) == 0


def test_what_a_stopped_trainer_leaves_running_is_asked_in_the_same_stop(spawn: Spawner, results: Path) -> None:
    code = """
        import os, subprocess, sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0) as run:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            if os.fork() == 0:
                time.sleep(600)
            print("holding", flush=True)
            while not run.should_stop:
                time.sleep(0.01)
    """
    child = holding(spawn, results, code)
    reaped(child)
    told: list[str] = []
    assert isinstance(stop.stop(results, PATIENT, tell=told.append), Stopped)
    assert any("of it still runs: asking that too" in line for line in told)
    assert spawn.descendants() == []


def test_an_old_style_trainer_is_killed_with_its_workers(spawn: Spawner, results: Path) -> None:
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]"
    inner = f"{PYTHON} -c '{deaf}; print(1, flush=True); time.sleep(600)'"
    child = spawn("sh", "-c", f"trap '' INT TERM; {inner} & {inner}; :")
    wait_until(lambda: child.text().count("1") == 2)
    (results / "training.lock").write_text(f"{child.pid}\n")
    (results / "checkpoint_40.pt").touch()
    reaped(child)
    result = stop.stop(results, StopPolicy(0.2, kill=True))
    assert isinstance(result, Killed)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "checkpoint_40.pt"
    assert spawn.descendants() == []


def test_what_saves_after_the_first_request_is_not_asked_again_when_its_leader_is_gone(
    spawn: Spawner, results: Path
) -> None:
    code = """
        import signal, subprocess, sys, time
        if len(sys.argv) == 1:
            child = subprocess.Popen([sys.executable, __file__, "saver"])
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            child.wait()
        try:
            print("ready", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(1.2)
            print("saved", flush=True)
    """
    program = spawn.program("leader.py", code)
    child = spawn.solorun("start", results, "--", sys.executable, program)
    wait_until(lambda: "ready" in child.text())
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    child.wait()
    assert (results / "training.log").read_text().count("saved") == 1


SAVES = """
    import os, sys, time, solorun
    with solorun.hold(sys.argv[1], settle_s=0) as run:
        run.progress(3, 9)
        print("holding", flush=True)
        while not run.should_stop:
            time.sleep(0.01)
        with run.phase("saving"):
            while not os.path.exists(sys.argv[2]):
                time.sleep(0.01)
            open(sys.argv[1] + "/checkpoint_3.pt", "w").close()
"""


"""A trainer whose save ends once a file is there."""

AT_ONCE, NEVER = "/", "/nowhere"


class SinceItSaves:
    """Seconds since a run began to save: how soon a trainer gets there, a busy machine decides."""

    def __init__(self, results: Path) -> None:
        self.progress = results / "progress"
        self.began: float | None = None

    def __call__(self) -> float:
        if self.began is None and b"saving" in self.progress.read_bytes():
            self.began = time.monotonic()
        return 0.0 if self.began is None else time.monotonic() - self.began


@pytest.mark.parametrize("kill", [False, True])
def test_a_save_in_progress_extends_the_wait_and_is_said_once(
    spawn: Spawner, results: Path, tmp_path: Path, kill: bool
) -> None:
    saved = tmp_path / "saved"
    child = spawn.python(SAVES, results, saved)
    child.wait_for("holding")
    reaped(child)
    told: list[str] = []
    looks = 0

    def let_it_save_on(seconds: float) -> None:
        """Between two looks of the stop: the save ends some looks after it was said that it is waited for."""
        nonlocal looks
        looks += any("up to 10 min more" in line for line in told)
        if looks > 5:
            saved.touch()
        time.sleep(seconds)

    policy = StopPolicy(0.3, kill=kill)
    result = stop.stop(results, policy, tell=told.append, clock=SinceItSaves(results), sleep=let_it_save_on)
    assert isinstance(result, Stopped)
    assert (result.step, result.checkpoint and result.checkpoint.step) == (3, 3)
    assert result.after_s > 0.3
    assert len([line for line in told if "it is saving: up to 10 min more" in line]) == 1
    assert child.wait() == 128 + signal.SIGTERM


def test_a_save_that_does_not_end_is_waited_for_no_longer_than_the_extension(spawn: Spawner, results: Path) -> None:
    child = spawn.python(SAVES, results, NEVER)
    child.wait_for("holding")
    reaped(child)
    result = stop.stop(results, StopPolicy(0.2, save_extension_s=0.5), clock=SinceItSaves(results))
    assert isinstance(result, StillRunning)
    assert (result.phase, result.pids) == ("saving", (child.pid,))
    assert result.after_s >= 0.7
    result = stop.stop(results, StopPolicy(0.2, kill=True, save_extension_s=0.2))
    assert isinstance(result, Killed)


def test_a_suspended_supervisor_and_worker_are_woken_and_the_end_is_written_down(spawn: Spawner, results: Path) -> None:
    code = """
        import os, sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0) as run:
            worker = os.fork()
            if worker == 0:
                time.sleep(600)
            print("ready", worker, flush=True)
            while not run.should_stop:
                time.sleep(0.01)
            os.kill(worker, 15)
            os.waitpid(worker, 0)                        # for ever, while it is suspended
    """
    program = spawn.program("family.py", code)
    child = spawn.solorun("start", results, "--", sys.executable, program, results)
    said = wait_until(lambda: re.search(r"ready (\d+)\n", child.text()))  # the words come one by one
    wait_until(lambda: "adopted" in events(results))
    worker = int(said[1])
    for pid in (worker, child.pid):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: (seen := process.probe(pid)) and isinstance(seen, Alive) and seen.state == "T")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == 128 + signal.SIGTERM
    assert (run_record(results)["state"], label_of(results)) == ("interrupted", 0)


def test_a_trainer_that_ends_without_a_word_is_told_with_the_signal_that_it_was_asked_by(
    spawn: Spawner, results: Path
) -> None:
    code = """
        import os, signal, sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0):
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
            print("ready", flush=True)
            time.sleep(600)
    """
    child = spawn(sys.executable, spawn.program("mute.py", code), results)
    child.wait_for("ready")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    record = run_record(results)
    assert (record["state"], record["signal"], record["why"]) == ("interrupted", 15, "SIGTERM from `solorun stop`")


def test_where_the_supervisor_was_killed_the_stop_writes_the_end_down(spawn: Spawner, results: Path) -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    child = spawn.solorun("start", results, "--", sys.executable, "-c", code)
    wait_until(lambda: label_of(results) and "ready" in child.text())
    child.signal(signal.SIGKILL)
    child.wait()
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    record = run_record(results)
    assert (record["state"], record["why"]) == ("interrupted", "SIGINT from `solorun stop`")
    assert not names(results) & {"training.lock", "training.owner.json"}
    assert spawn.descendants() == []


STARTING = """
    import os, sys, time
    from solorun import claim, hold
    quick = claim.new_run_id
    def slow(now):
        print("entered", flush=True)
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        return quick(now)
    claim.new_run_id = slow
    with hold(sys.argv[1], settle_s=0) as run:
        print("holding", flush=True)
        while not run.should_stop:
            time.sleep(0.01)
"""


def test_a_run_that_has_the_lock_but_not_yet_a_label_is_stopped_too(
    spawn: Spawner, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solorun.target._STARTING_S", DEADLINE_S)
    seen = tmp_path / "seen"
    child = spawn.python(STARTING, results, seen)
    child.wait_for("entered")
    assert names(results) == set()
    reaped(child)

    def look_on(seconds: float) -> None:
        """Between two looks of the stop, of which the first finds a lock without a label."""
        seen.touch()
        time.sleep(seconds)

    assert isinstance(stop.stop(results, PATIENT, sleep=look_on), Stopped)
    assert child.wait() == 128 + signal.SIGTERM


def test_a_start_that_never_gets_to_its_label_is_ended(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solorun.target._STARTING_S", 0.3)
    child = spawn.python(STARTING, results, NEVER)
    child.wait_for("entered")
    assert stop.stop(results, StopPolicy(0.2)) != WasNotRunning()
    reaped(child)
    assert isinstance(stop.stop(results, StopPolicy(0.5, kill=True)), Stopped | Killed | WasNotRunning)
    assert spawn.descendants() == []


def test_of_a_script_of_two_trainers_the_second_is_stopped_with_its_save(spawn: Spawner, results: Path) -> None:
    code = """
        import sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0, exit_on_stop=False) as run:
            print("ready", sys.argv[2], flush=True)
            while not run.should_stop:
                time.sleep(0.01)
            with run.phase("saving"):
                time.sleep(0.8)
            print("saved", sys.argv[2], flush=True)
    """
    program = spawn.program("two.py", code)
    script = f"{PYTHON} {quoted(program)} {quoted(results)} one; {PYTHON} {quoted(program)} {quoted(results)} two"
    child = spawn.solorun("start", results, "--", "sh", "-c", script)
    wait_until(lambda: "ready one" in child.text() and "adopted" in events(results))
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() is not None
    assert "saved one" in child.text()
    assert ("ready two" in child.text()) == ("saved two" in child.text())


def test_a_second_trainer_that_missed_the_question_while_it_started_is_asked_again(
    spawn: Spawner, results: Path
) -> None:
    first = """
        import sys, time, solorun
        with solorun.hold(sys.argv[1], settle_s=0) as run:
            print("ready one", flush=True)
            while not run.should_stop:
                time.sleep(0.01)
    """
    second = """
        import signal, sys, threading, time, solorun
        heard = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: heard.set())  # and no more: as if it had not been there yet to be asked
        print("armed", flush=True)
        while not heard.is_set():
            time.sleep(0.01)
        with solorun.hold(sys.argv[1], settle_s=0, exit_on_stop=False) as run:
            while not run.should_stop:
                time.sleep(0.01)
            with run.phase("saving"):
                print("saved two", flush=True)
    """
    one, two = (
        f"{PYTHON} {quoted(spawn.program(name, code))} {quoted(results)}"
        for name, code in (("one.py", first), ("two.py", second))
    )
    child = spawn.solorun("start", results, "--", "sh", "-c", f"{two} & {one}; wait")
    wait_until(lambda: "ready one" in child.text() and "armed" in child.text() and "adopted" in events(results))
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    child.wait()
    assert "saved two" in child.text()


def test_two_people_who_stop_one_run_the_hard_way_both_learn_that_it_is_dead(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, FAMILY)
    reaped(child)
    found: list[object] = []
    together = threading.Barrier(2, timeout=DEADLINE_S)

    def tell(line: str) -> None:
        if "SIGTERM to the whole run" in line:  # neither gets to SIGKILL before the other one is as far as this
            together.wait()

    def end() -> None:
        found.append(stop.stop(results, StopPolicy(0.2, kill=True), tell=tell))

    both = [threading.Thread(target=end, daemon=True) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(2 * DEADLINE_S)
    assert [type(one) for one in found] == [Killed, Killed]
    assert spawn.descendants() == []
    assert stop.stop(results, PATIENT) == WasNotRunning()


# What the command says.


def test_stop_as_json_says_how_it_went(spawn: Spawner, results: Path) -> None:
    child = spawn.python(SAVES, results, AT_ONCE)
    child.wait_for("holding")
    told = spawn.solorun("stop", results, "--json", stderr=None)
    child.wait()
    assert told.wait() == 0
    row = json.loads(told.text())
    assert (row["result"], row["step"], row["checkpoint"]["file"]) == ("stopped", 3, "checkpoint_3.pt")
    again = spawn.solorun("stop", results, "--json", stderr=None)
    assert again.wait() == 0
    assert json.loads(again.text())["result"] == "not running"


def test_stop_says_what_it_saw_of_a_run_that_does_not_end(spawn: Spawner, results: Path) -> None:
    (results.parent.parent / "solorun.toml").write_text("grace_s = 0.4\nsilent_unknown_s = 0.1\n")
    child = holding(spawn, results, FAMILY)
    (results / "checkpoint_7.pt").touch()
    told = spawn.solorun("stop", results, cwd=results.parent.parent)
    assert told.wait() == 5
    text = told.text()
    said = re.search(rf"still running after (\d+\.\d) s, phase starting, PID {child.pid}\b", text)
    assert said is not None, text
    assert float(said[1]) >= 0.4
    assert "it may still end by itself" in text
    assert "a kill would leave checkpoint_7.pt, written" in text
    assert "no progress in phase starting" in text
    assert "Traceback" not in text


def test_ctrl_c_leaves_the_run_to_its_end_and_says_so(spawn: Spawner, results: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    child = spawn.python(SAVES, results, saved)
    child.wait_for("holding")
    told = spawn.solorun("stop", results)
    told.wait_for("it is saving")
    told.signal(signal.SIGINT)
    assert told.wait() == 130
    assert "no longer waiting; the run was asked" in told.text()
    saved.touch()
    assert child.wait() == 128 + signal.SIGTERM


def test_a_mistake_in_the_settings_does_not_keep_a_run_from_being_stopped(spawn: Spawner, results: Path) -> None:
    (results.parent.parent / "solorun.toml").write_text("colour = 1")
    child = spawn.python(SAVES, results, AT_ONCE)
    child.wait_for("holding")
    told = spawn.solorun("stop", results, cwd=results.parent.parent)
    child.wait()
    assert told.wait() == 0
    assert "unknown key 'colour'" in told.text()
    assert "going on with the defaults" in told.text()


def test_a_stop_is_over_when_the_next_run_is_in_though_the_old_guard_still_sends_notices(
    spawn: Spawner, results: Path
) -> None:
    old, guard = (identity_of(spawn("sleep", "600")) for _ in range(2))
    owner = owner_of(results, old, run_id="old", supervisor=guard)
    next_run = spawn.python(HOLDING, results)
    next_run.wait_for("holding")
    process.send(old, signal.SIGKILL)
    wait_until(lambda: not process.is_alive(old))
    pursuit = Pursuit(results, Target("old", owner, ()), time.monotonic)
    assert process.is_alive(guard)
    assert pursuit.rest() == []
    pursuit.signal(signal.SIGKILL)
    assert process.is_alive(guard)
    assert next_run.popen.poll() is None


def test_a_guard_whose_run_was_killed_gets_a_moment_to_write_down_how_it_ended(spawn: Spawner, results: Path) -> None:
    guard = identity_of(spawn("sleep", "600"))
    owner = owner_of(results, process.ProcessId(process.here(), a_dead_pid(), 1), run_id="old", supervisor=guard)
    (results / "training.owner.json").write_bytes(encode_owner(owner))
    now = [0.0]
    pursuit = Pursuit(results, Target("old", owner, ()), lambda: now[0])
    assert pursuit.rest() == [guard]
    pursuit.signal(signal.SIGKILL)
    assert process.is_alive(guard)
    now[0] = 60.0
    pursuit.signal(signal.SIGKILL)
    wait_until(lambda: not process.is_alive(guard))


TIDYING = """
import sys, time
from solorun import lock
held = lock.seize(sys.argv[1])
print("seized", flush=True)
time.sleep(600)
"""


def test_somebody_elses_recovery_that_holds_the_directory_is_no_run_to_stop(spawn: Spawner, results: Path) -> None:
    program = spawn.program("solorun", TIDYING.replace("sys.argv[1]", "sys.argv[2]"))
    recovery = spawn(sys.executable, program, "recover", results)
    recovery.wait_for("seized")
    assert stop.stop(results, StopPolicy(0.5)) == WasNotRunning()
    assert recovery.popen.poll() is None


def identity_of(child: Child) -> process.ProcessId:
    found = process.identify(child.pid)
    assert found is not None
    reaped(child)
    return found
