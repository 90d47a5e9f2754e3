"""Stopping a run: ask, wait, prove; escalate only when told to."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import patience, process, stop
from solorun.cli.stop import as_row
from solorun.errors import DirectoryProblem, Refused
from solorun.owner import encode_owner
from solorun.patience import Action, StopPolicy, next_action
from solorun.rundir import CheckpointFile
from solorun.stop import Killed, StillRunning, Stopped, Unseen, WasNotRunning, what_survives
from solorun.stopping import SAME_REQUEST_S

from .stage import (
    DEADLINE_S,
    HOLDING,
    PYTHON,
    Child,
    Spawner,
    a_dead_pid,
    as_nobody,
    events,
    label_of,
    names,
    owner_of,
    quoted,
    run_record,
    wait_until,
)

PATIENT = StopPolicy(graceful_s=60)
KILLING = StopPolicy(graceful_s=60, kill=True)
INT, TERM, KILL = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGKILL)


ROWS = [
    # policy, elapsed, alive, sent, at, saving at, action
    (PATIENT, 0, False, INT, 0, None, Action.DONE),
    (PATIENT, 999, False, INT, 0, None, Action.DONE),
    (PATIENT, 0, True, INT, 0, None, Action.WAIT),
    (PATIENT, 59.9, True, INT, 0, None, Action.WAIT),
    (PATIENT, 60, True, INT, 0, None, Action.GIVE_UP),
    (KILLING, 59.9, True, INT, 0, None, Action.WAIT),
    (KILLING, 60, True, INT, 0, None, Action.TERM),
    (KILLING, 61, True, TERM, 60, None, Action.WAIT),
    (KILLING, 70, True, TERM, 60, None, Action.KILL),
    (KILLING, 71, True, KILL, 70, None, Action.WAIT),
    (KILLING, 80, True, KILL, 70, None, Action.GIVE_UP),
    (KILLING, 65, False, TERM, 60, None, Action.DONE),
    (StopPolicy(0), 0, True, INT, 0, None, Action.GIVE_UP),
    (StopPolicy(0, kill=True), 0, True, INT, 0, None, Action.TERM),
    # A save in progress, the moment after it, and its end.
    (PATIENT, 61, True, INT, 0, 61, Action.WAIT),
    (PATIENT, 659, True, INT, 0, 659, Action.WAIT),
    (PATIENT, 660, True, INT, 0, 660, Action.GIVE_UP),
    (PATIENT, 104, True, INT, 0, 100, Action.WAIT),
    (PATIENT, 105, True, INT, 0, 100, Action.GIVE_UP),
    (PATIENT, 61, True, INT, 0, 20, Action.GIVE_UP),
    (KILLING, 61, True, INT, 0, 61, Action.WAIT),
    (KILLING, 105, True, INT, 0, 100, Action.TERM),
    (KILLING, 660, True, INT, 0, 660, Action.TERM),
    (KILLING, 120, True, TERM, 100, 120, Action.WAIT),
    (KILLING, 670, True, TERM, 660, 670, Action.KILL),
    (KILLING, 680, True, KILL, 670, 680, Action.GIVE_UP),
    (StopPolicy(0, save_extension_s=0), 1, True, INT, 0, 1, Action.GIVE_UP),
]


@pytest.mark.parametrize(("policy", "elapsed", "alive", "sent", "at", "saving", "action"), ROWS)
def test_the_next_action(
    monkeypatch: pytest.MonkeyPatch,
    policy: StopPolicy,
    elapsed: float,
    alive: bool,
    sent: int,
    at: float,
    saving: float | None,
    action: Action,
) -> None:
    monkeypatch.undo()  # the real graces
    assert next_action(policy, elapsed, alive=alive, sent=sent, sent_at_s=at, saving_at_s=saving) is action


@pytest.mark.parametrize(
    ("step", "checkpoint", "words"),
    [
        (None, None, "it reported no steps, and there is no checkpoint file"),
        (0, None, "no step was made: nothing was owed"),
        (7, None, "no checkpoint file is there: 7 steps lost"),
        (7, 7, "newest checkpoint: checkpoint_7.pt"),
        (0, 7, "newest checkpoint: checkpoint_7.pt"),
        (None, 7, "newest checkpoint: checkpoint_7.pt"),
        (8, 7, "newest checkpoint: checkpoint_7.pt; 1 step after it is lost"),
        (12, 7, "newest checkpoint: checkpoint_7.pt; 5 steps after it are lost"),
    ],
)
def test_what_survives_in_words(step: int | None, checkpoint: int | None, words: str) -> None:
    file = None if checkpoint is None else CheckpointFile(checkpoint, f"checkpoint_{checkpoint}.pt", 9, 0.0)
    assert what_survives(step, file) == words


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_TERM_GRACE_S", 0.5)
    # What a killed process and its guard need to be gone, a busy machine decides.
    monkeypatch.setattr(patience, "_KILL_GRACE_S", DEADLINE_S)
    monkeypatch.setattr("solorun.target._WRITING_S", DEADLINE_S)


def holding(spawn: Spawner, results: Path, code: str = HOLDING) -> Child:
    child = spawn.python(code, results)
    child.wait_for("holding")
    return child


def reaped(child: Child) -> threading.Thread:
    """Reap a child as soon as it ends, as a shell would."""
    thread = threading.Thread(target=child.popen.wait, daemon=True)
    thread.start()
    return thread


def stopping(results: Path) -> tuple[threading.Thread, list[stop.StopResult]]:
    """A stop beside this thread, and what it says in the end."""
    said: list[stop.StopResult] = []
    thread = threading.Thread(target=lambda: said.append(stop.stop(results, PATIENT)), daemon=True)
    thread.start()
    return thread, said


def test_a_run_that_answers_is_stopped_gracefully(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results)
    wait_until(lambda: (results / "progress").read_bytes().find(b"training") > 0)
    reaped(child)
    told: list[str] = []
    result = stop.stop(results, PATIENT, tell=told.append)
    assert isinstance(result, Stopped)
    assert result.step
    assert told[0] == f"asking PID {child.pid} to stop (SIGTERM)"
    assert child.wait() == 128 + signal.SIGTERM
    assert "leaving SIGTERM" in child.text()
    assert label_of(results) == 0
    assert run_record(results)["state"] == "interrupted"


def test_what_a_run_was_doing_is_told_also_where_it_ends_before_the_next_look(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    told: list[str] = []
    ask = stop._Stop._ask

    def ask_and_see_the_end(self: stop._Stop) -> None:
        ask(self)
        child.wait()

    monkeypatch.setattr(stop._Stop, "_ask", ask_and_see_the_end)
    assert isinstance(stop.stop(results, PATIENT, tell=told.append), Stopped)
    assert [line.split(" ", 2)[:2] for line in told] == [["asking", "PID"], ["it", "is"]]


def test_a_look_that_fails_is_not_told_as_no_checkpoint(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaped(holding(spawn, results))

    def fail(*_words: object) -> None:  # a disk that fails in this very moment
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(stop, "checkpoint_files", fail)
    result = stop.stop(results, PATIENT)
    assert isinstance(result, Stopped)
    assert result.checkpoint == Unseen("Input/output error")
    assert "which checkpoint is the newest is not known: Input/output error" in what_survives(7, result.checkpoint)
    assert (as_row(result)["checkpoint"], as_row(result)["checkpoint_unknown"]) == (None, "Input/output error")


def test_a_directory_that_was_moved_is_not_told_as_one_without_checkpoints(spawn: Spawner, results: Path) -> None:
    reaped(holding(spawn, results))
    elsewhere = results.with_name("elsewhere")

    def move(_line: str) -> None:
        if results.exists():
            results.rename(elsewhere)

    result = stop.stop(results, PATIENT, tell=move)
    assert isinstance(result, Stopped)
    assert result.checkpoint == Unseen("No such file or directory")


def test_there_may_be_nothing_to_stop(results: Path) -> None:
    assert stop.stop(results, PATIENT) == WasNotRunning()
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    assert stop.stop(results, PATIENT) == WasNotRunning()


def test_a_missing_directory_is_a_directory_problem(tmp_path: Path) -> None:
    with pytest.raises(DirectoryProblem, match="No such file"):
        stop.stop(tmp_path / "nowhere", PATIENT)


STUBBORN = """
    import signal, sys, time, solorun
    with solorun.hold(sys.argv[1]) as run:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("holding", flush=True)
        with run.phase("brooding"):
            time.sleep(600)
"""


def test_a_run_that_does_not_answer_is_told_with_its_phase_and_lives(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, STUBBORN)
    wait_until(lambda: b"brooding" in (results / "progress").read_bytes())
    result = stop.stop(results, StopPolicy(0.3))
    assert isinstance(result, StillRunning)
    assert (result.phase, result.pids, result.step) == ("brooding", (child.pid,), 0)
    assert child.popen.poll() is None
    assert label_of(results) == child.pid


def test_kill_ends_a_run_that_ignores_int_and_term_and_clears_its_lock(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, STUBBORN)
    reaped(child)
    told: list[str] = []
    result = stop.stop(results, StopPolicy(0.2, kill=True), tell=told.append)
    assert isinstance(result, Killed)
    assert result.signal == signal.SIGKILL
    assert [word for line in told for word in ("SIGINT", "SIGTERM", "SIGKILL") if word in line] == [
        "SIGTERM", "SIGTERM", "SIGKILL",
    ]  # fmt: skip
    assert child.wait() == -signal.SIGKILL
    assert not names(results) & {"training.lock", "training.owner.json"}


def test_a_suspended_run_is_woken_to_stop(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results)
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == 128 + signal.SIGTERM


SLOW = """
    import os, sys, time, solorun
    with solorun.hold(sys.argv[1]) as run:
        print("holding", flush=True)
        while not run.should_stop:
            time.sleep(0.01)
        with run.phase("saving"):
            while not os.path.exists(sys.argv[1] + ".saved"):
                time.sleep(0.01)
        print("saved", flush=True)
"""
"""A trainer that saves until a test lets it have saved."""


def let_it_have_saved(results: Path) -> None:
    results.with_name(results.name + ".saved").touch()


def test_a_second_stop_while_the_first_waits_does_not_cut_the_saving_short(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, SLOW)
    reaped(child)
    both = []
    for number in (1, 2):
        both.append(stopping(results))
        wait_until(lambda number=number: events(results).count("stop requested") == number)
    wait_until(lambda: b"saving" in (results / "progress").read_bytes())
    let_it_have_saved(results)
    for thread, said in both:
        thread.join(DEADLINE_S)
        assert [type(one) for one in said] == [Stopped]
    assert child.wait() == 128 + signal.SIGTERM
    assert "saved" in child.text()


def test_a_stop_after_a_ctrl_c_does_not_cut_the_saving_short(spawn: Spawner, results: Path) -> None:
    child = holding(spawn, results, SLOW)
    reaped(child)
    child.signal(signal.SIGINT)
    wait_until(lambda: b"saving" in (results / "progress").read_bytes())
    began = time.monotonic()  # longer ago than what counts as one and the same request
    wait_until(lambda: time.monotonic() > began + 2 * SAME_REQUEST_S)
    thread, said = stopping(results)
    wait_until(lambda: "stop requested" in events(results))
    let_it_have_saved(results)
    thread.join(DEADLINE_S)
    assert [type(one) for one in said] == [Stopped]
    assert child.wait() == 128 + signal.SIGINT
    assert "saved" in child.text()


def test_a_command_that_was_asked_a_moment_ago_is_not_interrupted_again(spawn: Spawner, results: Path) -> None:
    code = """
import os, signal, sys, time
signal.signal(2, lambda *_: print("heard", flush=True))
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""
    let_go = results.with_name("let-go")
    child = supervised(spawn, results, sys.executable, "-c", code, str(let_go))
    told: list[str] = []
    assert isinstance(stop.stop(results, StopPolicy(0.3)), StillRunning)
    assert isinstance(stop.stop(results, StopPolicy(0.3), tell=told.append), StillRunning)
    assert told[0] == "it was asked to stop before; waiting for it"
    wait_until(lambda: "heard" in (results / "training.log").read_text())
    let_go.touch()
    child.wait()
    assert (results / "training.log").read_text().count("heard") == 1


@pytest.mark.parametrize("moment", ["soon", [1], None, {"a": 1}, 9e9])
def test_a_line_of_the_journal_with_no_time_or_one_to_come_keeps_no_run_from_being_stopped(
    spawn: Spawner, results: Path, moment: object
) -> None:
    child = supervised(spawn, results, sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)")
    with (results / "events.jsonl").open("a") as journal:
        line = {"run_id": run_record(results)["run_id"], "event": "stop requested", "time": moment, "by": "?"}
        journal.write(json.dumps(line) + "\n")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)


def test_an_old_style_trainer_is_asked_whatever_runs_were_stopped_here_before(spawn: Spawner, results: Path) -> None:
    earlier = holding(spawn, results)
    reaped(earlier)
    stop.stop(results, PATIENT)
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    child.wait_for("up")
    (results / "training.lock").write_text(f"{child.pid}\n")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == -signal.SIGINT


def test_beside_the_record_of_a_dead_run_the_old_style_trainer_is_the_one_that_is_stopped(
    spawn: Spawner, results: Path
) -> None:
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)")
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead)))
    (results / "training.lock").write_text(f"{child.pid}\n")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == -signal.SIGINT


def test_survivors_of_a_run_that_is_over_are_stopped(spawn: Spawner, results: Path) -> None:
    run_id = f"run-{spawn.mark}"
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run_id})
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead, run_id)))
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == -signal.SIGINT
    assert "training.owner.json" not in names(results)


def test_survivors_are_asked_even_when_their_run_was_asked_before(spawn: Spawner, results: Path) -> None:
    code = """
        import subprocess, sys, time, solorun
        with solorun.hold(sys.argv[1]) as run:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            print("holding", flush=True)
            while not run.should_stop:
                time.sleep(0.01)
    """
    child = holding(spawn, results, code)
    child.signal(signal.SIGINT)
    reaped(child)
    assert child.wait() == 128 + signal.SIGINT
    (survivor,) = process.carriers(run_record(results)["run_id"])
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert not process.is_alive(survivor)


def test_a_run_of_another_host_is_refused_untouched(results: Path) -> None:
    me = process.identify_self()
    there = replace(me, here=replace(me.here, boot="b", machine="m", host="far"))
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, there)))
    with pytest.raises(Refused, match="host 'far'"):
        stop.stop(results, PATIENT)


def test_another_users_run_is_refused_and_its_owner_can_still_stop_it(spawn: Spawner, open_results: Path) -> None:
    open_results.chmod(0o777)
    child = holding(spawn, open_results)
    (open_results / "events.jsonl").chmod(0o666)
    assert "Refused" in as_nobody(lambda: str(stop.stop(open_results, StopPolicy(0.2))))
    assert child.popen.poll() is None
    reaped(child)
    assert isinstance(stop.stop(open_results, PATIENT), Stopped)


# Under a supervisor.


def supervised(spawn: Spawner, results: Path, *argv: str) -> Child:
    child = spawn.solorun("start", results, "--", *argv)
    wait_until(lambda: label_of(results) and "ready" in (results / "training.log").read_text())
    return child


def test_a_shell_wrapper_around_a_trainer_is_stopped_whole(
    spawn: Spawner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_TERM_GRACE_S", DEADLINE_S)
    child = supervised(spawn, results, "sh", "-c", "sleep 600 & echo ready; wait; sleep 600")
    run_id = run_record(results)["run_id"]
    reaped(child)
    # The shell's background job ignores SIGINT, as POSIX wants it: only --kill ends the whole.
    result = stop.stop(results, StopPolicy(0.5, kill=True))
    assert isinstance(result, Killed)
    assert result.signal == signal.SIGTERM
    child.wait()
    assert process.carriers(run_id) == []
    assert label_of(results) == 0


def test_a_guarded_command_is_stopped_with_its_foreground_child(spawn: Spawner, results: Path) -> None:
    program = spawn.program("sleeper.py", "import time; print('ready', flush=True); time.sleep(600)")
    child = supervised(spawn, results, "sh", "-c", f"{PYTHON} {quoted(program)}; exit 3")
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    child.wait()
    assert run_record(results)["state"] == "interrupted"
    assert label_of(results) == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_ended_trainers_survivors_are_all_stopped(spawn: Spawner, results: Path, end: signal.Signals) -> None:
    survivor = "import time; time.sleep(600)"
    code = f"""
import subprocess, sys, time, solorun
with solorun.hold(sys.argv[1]) as run:
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", "{survivor}"], start_new_session=True)
    print("ready", flush=True)
    while not run.should_stop:
        time.sleep(0.01)
"""
    child = supervised(spawn, results, sys.executable, "-c", code, str(results))
    wait_until(lambda: "adopted" in events(results))
    if end == signal.SIGINT:
        child.signal(end)
    else:
        os.kill(label_of(results), end)
    wait_until(lambda: "survivors" in events(results))
    reaped(child)
    assert isinstance(stop.stop(results, PATIENT), Stopped)
    assert child.wait() == 128 + end
    assert process.carriers(run_record(results)["run_id"]) == []


def test_killing_a_guarded_run_leaves_the_supervisor_to_write_down_how_it_ended(spawn: Spawner, results: Path) -> None:
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]"
    code = deaf + "; print('ready', flush=True); time.sleep(600)"
    child = supervised(spawn, results, sys.executable, "-c", code)
    reaped(child)
    assert isinstance(stop.stop(results, StopPolicy(0.2, kill=True)), Killed)
    assert child.wait() == 128 + signal.SIGKILL
    assert (run_record(results)["state"], run_record(results)["signal"]) == ("killed", signal.SIGKILL)
