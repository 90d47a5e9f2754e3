"""`solorun recover` on real processes: P12, P13, P14, containers, and everything that must survive it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import process
from solorun.owner import Gone, Here, decode_owner, encode_owner
from solorun.recover import look
from solorun.scenario import diagnose
from solorun.settings import Settings
from tests.guard.stage import (
    HOLDING,
    Child,
    Spawner,
    Terminal,
    a_dead_pid,
    as_nobody,
    events,
    names,
    owner_of,
    snapshot,
    wait_until,
)

OLD = str(Path(__file__).with_name("old_trainer.py"))
HEARS_SIGINT = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}


def recover(spawn: Spawner, directory: Path, *flags: str, code: int = 0) -> str:
    """What the command said, on one line; it must end with this status."""
    child = spawn.solorun("recover", directory, *flags)
    assert child.wait(60) == code, child.text()
    return " ".join(child.text().split())


def start_works(spawn: Spawner, directory: Path) -> None:
    child = spawn.solorun("start", directory, "--", sys.executable, "-c", "print('trained')")
    assert child.wait() == 0, child.text()


def old_trainer(spawn: Spawner, directory: Path) -> Child:
    child = spawn(sys.executable, OLD, str(directory), "120", "work", **HEARS_SIGINT)
    child.wait_for("acquired")
    return child


def is_gone(pid: int) -> bool:
    return isinstance(process.probe(pid), Gone)


def test_a_stale_lock_is_named_and_cleared_and_a_dry_run_changes_not_one_byte(spawn: Spawner, results: Path) -> None:
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    before = snapshot(results)
    said = recover(spawn, results, "--dry-run", code=4)
    assert "STALE LOCK" in said
    assert f"PID {dead} is dead" in said
    assert "--yes" in recover(spawn, results, code=2)
    assert snapshot(results) == before
    recover(spawn, results, "--yes")
    assert "training.lock" not in names(results)
    assert events(results) == ["cleared stale lock"]
    assert "nothing to do" in recover(spawn, results, "--dry-run")
    start_works(spawn, results)


def test_a_healthy_run_needs_nothing_and_is_left_alone(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    for flags in (["--dry-run"], ["--yes", "--kill"]):
        assert "healthy" in recover(spawn, results, *flags)
    assert child.popen.poll() is None
    assert "stop requested" not in events(results)


DEAF = """
    import signal, sys, time, solorun
    with solorun.hold(sys.argv[1]) as run:
        run.progress(1, 100)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("holding", flush=True)
        time.sleep(600)
"""


def test_a_suspended_run_that_hears_nothing_is_killed_only_when_told_to(spawn: Spawner, results: Path) -> None:
    child = spawn.python(DEAF, results)
    child.wait_for("holding")
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    (results / "checkpoint_1.pt").write_bytes(b"PK\3\4 cut")
    said = recover(spawn, results, "--yes", "--grace", "0.3", code=5)
    assert "HUNG RUN" in said
    assert "suspended" in said
    assert "--kill" in said
    assert not is_gone(child.pid)
    assert "checkpoint_1.pt" in names(results)
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    recover(spawn, results, "--yes", "--kill", "--grace", "0.3")
    assert child.wait() == -signal.SIGKILL
    assert "training.lock" not in names(results)
    assert [path.name for path in results.glob("archive/quarantine-*/*")] == ["checkpoint_1.pt"]
    start_works(spawn, results)


def test_two_old_trainers_fight_while_one_of_ours_waits(spawn: Spawner, results: Path) -> None:
    first = old_trainer(spawn, results)
    (results / "training.lock").unlink()  # the hand on the lock that lets the second one in
    second = old_trainer(spawn, results)
    wait_until(lambda: (results / "checkpoint_21.pt").exists())
    (results / "checkpoint_2.pt").write_bytes(b"PK\3\4 cut short by the fight")
    turn = (sys.executable, "-c", "print('my turn')")
    waiting = spawn.solorun("start", "--wait", results, "--", *turn)
    wait_until(lambda: (results / "waiting").is_dir() and names(results / "waiting"))
    reader = spawn("tail", "-f", str(results / "training.log"))
    shell = spawn("sleep", "600", cwd=results)
    said = recover(spawn, results, "--yes", "--grace", "20")
    assert "FIGHTING: 2 runs" in said
    assert first.wait() == second.wait() == 0
    assert waiting.wait() == 0, waiting.text()
    assert reader.popen.poll() is None
    assert shell.popen.poll() is None
    kept = sorted(path.name for path in results.glob("checkpoint_*.pt"))
    assert {"checkpoint_1.pt", "checkpoint_21.pt"} <= set(kept)
    assert all(zipfile.ZipFile(results / name).testzip() is None for name in kept)
    (aside,) = results.glob("archive/quarantine-*")
    assert names(aside) >= {"checkpoint_2.pt", "training.log"}
    mixed = (aside / "training.log").read_text()
    assert f"PID {first.pid} " in mixed
    assert f"PID {second.pid} " in mixed
    assert "my turn" in (results / "training.log").read_text()
    assert "quarantined" in events(results)
    start_works(spawn, results)


def test_fighters_that_hear_nothing_are_killed_only_when_told_to(spawn: Spawner, results: Path) -> None:
    ours = spawn.python(HOLDING, results)
    ours.wait_for("holding")
    intruder = spawn.python(
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with open(sys.argv[1] + '/training.log', 'a') as log:\n    print('up', flush=True); time.sleep(600)",
        results,
    )
    intruder.wait_for("up")
    said = recover(spawn, results, "--yes", "--grace", "2", code=5)
    assert "FIGHTING" in said
    assert "ignores SIGINT" in said
    assert ours.wait() == 143
    assert intruder.popen.poll() is None
    assert "UNGUARDED" in recover(spawn, results, "--yes", "--kill", "--grace", "0.2")
    assert intruder.wait() == -signal.SIGTERM
    start_works(spawn, results)


def test_a_start_that_waited_behind_a_fight_of_ours_gets_in_and_is_not_taken_for_a_fighter(
    spawn: Spawner, results: Path
) -> None:
    ours = spawn.python(HOLDING, results)
    ours.wait_for("holding")
    intruder = spawn.python(
        "import sys, time\nwith open(sys.argv[1] + '/training.log', 'a') as log:\n    print('up', flush=True)\n"
        "    time.sleep(600)",
        results,
        **HEARS_SIGINT,
    )
    intruder.wait_for("up")
    waiting = spawn.solorun("start", "--wait", results, "--", sys.executable, "-c", "import time; time.sleep(2)")
    wait_until(lambda: (results / "waiting").is_dir() and names(results / "waiting"))
    said = recover(spawn, results, "--yes", "--grace", "20")
    assert "FIGHTING: 2 runs" in said
    assert ours.wait() == 143
    assert intruder.wait() != 0
    assert waiting.wait() == 0, waiting.text()


BUSY = """
    import sys, time, solorun
    with solorun.hold(sys.argv[1], exit_on_stop=False) as run:
        run.progress(1, 100)
        print("holding", flush=True)
        while True:
            pass
"""
IMPATIENT = "silent_floor_s = 0.2\nsilent_ceiling_s = 0.3\nsilent_unknown_s = 0.3\n"


def test_a_run_without_progress_that_is_still_busy_is_not_killed_unasked(spawn: Spawner, results: Path) -> None:
    child = spawn.python(BUSY, results)
    child.wait_for("holding")
    (results.parent / "solorun.toml").write_text(IMPATIENT)

    def said(*flags: str, code: int | None) -> str:
        asking = spawn.solorun("recover", results, "--grace", "0.3", *flags, cwd=results.parent)
        assert asking.wait() == code or code is None, asking.text()
        return " ".join(asking.text().split())

    wait_until(lambda: "NO PROGRESS" in said("--dry-run", code=None))
    text = said("--yes", code=5)
    assert "not killed unasked" in text
    assert "--kill" in text
    assert child.popen.poll() is None


def test_who_was_asked_a_moment_ago_is_not_asked_again(spawn: Spawner, results: Path) -> None:
    saver = spawn.program(
        "train.py",
        """
        import signal, sys, time
        asked = []
        signal.signal(signal.SIGINT, lambda *_: asked.append(print("asked", flush=True)))
        log = open(sys.argv[1] + "/training.log", "a")
        print("up", flush=True)
        while not asked:
            time.sleep(0.01)
        time.sleep(4)
        print("saved, asked", len(asked), "time(s)", flush=True)
        """,
    )
    child = spawn(sys.executable, str(saver), str(results))
    child.wait_for("up")
    assert "UNGUARDED" in recover(spawn, results, "--yes", "--grace", "0.2", code=5)
    assert "asked to stop a moment ago" in recover(spawn, results, "--yes", "--grace", "20")
    assert "asked 1 time(s)" in child.text()


def test_what_is_left_of_a_killed_trainer_is_ended(spawn: Spawner, results: Path) -> None:
    trainer = spawn.python(
        """
        import subprocess, sys, time, solorun
        with solorun.hold(sys.argv[1]) as run:
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            print("worker", worker.pid, flush=True)
            time.sleep(600)
        """,
        results,
    )
    worker = int(trainer.wait_for("worker").split()[-1])
    trainer.signal(signal.SIGKILL)
    trainer.wait()
    said = recover(spawn, results, "--yes")
    assert "ORPHANED WORKERS" in said
    assert is_gone(worker)
    assert "training.lock" not in names(results)
    start_works(spawn, results)
    told = spawn.solorun("history", results)
    told.wait()
    assert "vanished" in told.text()
    assert "asked it to stop" not in told.text()  # its worker was, when the run was long dead


def test_what_a_killed_old_style_trainer_left_is_named_so_and_ended(spawn: Spawner, results: Path) -> None:
    trainer = spawn.program(
        "train.py",
        """
        import os, sys, time
        with open(sys.argv[1] + "/training.lock", "w") as label:
            label.write(f"{os.getpid()}\\n")
        log = open(sys.argv[1] + "/training.log", "a")
        for _ in range(2):
            if os.fork() == 0:
                time.sleep(600)
        print("up", flush=True)
        time.sleep(600)
        """,
    )
    child = spawn(sys.executable, str(trainer), str(results), start_new_session=True, **HEARS_SIGINT)
    child.wait_for("up")
    child.signal(signal.SIGKILL)
    child.wait()
    said = recover(spawn, results, "--yes", "--grace", "20")
    assert "ORPHANED WORKERS" in said
    assert "training.log" in names(results)  # one run wrote it: it stays
    assert "training.lock" not in names(results)
    start_works(spawn, results)


def test_a_label_that_names_a_stranger_ends_nobody(spawn: Spawner, results: Path) -> None:
    stranger = spawn("sleep", "600")
    (results / "training.lock").write_text(f"{stranger.pid}\n")
    assert "nothing else ties" in recover(spawn, results, "--yes", "--kill", code=7)
    assert stranger.popen.poll() is None
    assert names(results) == {"training.lock"}


def test_a_run_of_another_host_is_refused_and_untouched(spawn: Spawner, results: Path) -> None:
    me = process.identify_self()
    away = replace(me, here=Here("far", "far/1", "another boot", "pid:[1]"))
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, away)))
    before = snapshot(results)
    assert "--gone-host far" in recover(spawn, results, "--yes", "--kill", code=7)
    assert "--gone-host far" in recover(spawn, results, "--yes", "--gone-host", "near", code=7)
    assert snapshot(results) == before


def test_what_a_host_left_that_is_gone_for_good_is_cleared_when_a_person_says_so(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    child.signal(signal.SIGKILL)
    child.wait()
    owner = decode_owner((results / "training.owner.json").read_bytes())
    away = replace(owner.process, here=replace(owner.process.here, host="far", machine="far/1", boot="another boot"))
    (results / "training.owner.json").write_bytes(encode_owner(replace(owner, process=away)))
    before = snapshot(results)
    assert "far is not gone: its run told of itself" in recover(spawn, results, "--yes", "--gone-host", "far", code=7)
    assert snapshot(results) == before
    (results / "progress").unlink()
    told = recover(spawn, results, "--dry-run", "--gone-host", "far", code=4)
    assert "ABANDONED HOST" in told
    assert "your word alone" in told
    assert names(results) >= {"training.lock", "training.owner.json"}
    recover(spawn, results, "--gone-host", "far", code=2)
    recover(spawn, results, "--yes", "--gone-host", "far")
    assert names(results).isdisjoint({"training.lock", "training.owner.json"})
    start_works(spawn, results)


unshare = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="only root can make a PID namespace"
)


@unshare
def test_a_live_container_is_refused_untouched_and_an_abandoned_one_is_cleared(spawn: Spawner, results: Path) -> None:
    outer = spawn(
        "unshare", "-p", "-f", "--mount-proc", "--kill-child", sys.executable, "-c", "\n".join(
            line.removeprefix("    ") for line in HOLDING.splitlines()
        ), str(results),
    )  # fmt: skip
    outer.wait_for("holding")
    before = {name: seen for name, seen in snapshot(results).items() if name not in ("progress", "metrics.jsonl")}
    recover(spawn, results, "--yes", "--kill", code=7)
    inside = ("unshare", "-p", "-f", "--mount-proc", "--kill-child", sys.executable, "-m", "solorun", "recover")
    neighbour = spawn(*inside, str(results), "--yes", "--kill")
    assert neighbour.wait() == 7, neighbour.text()
    assert "the kernel's lock is held" in neighbour.text()
    now = snapshot(results)
    assert {name: now[name] for name in before} == before
    assert outer.popen.poll() is None
    for one in spawn.descendants():
        process.send(one, signal.SIGKILL)
    outer.wait()
    said = recover(spawn, results, "--dry-run", code=4)
    assert "ABANDONED CONTAINER" in said
    assert "training.owner.json" in names(results)
    recover(spawn, results, code=2)
    recover(spawn, results, "--yes")
    assert names(results).isdisjoint({"training.lock", "training.owner.json"})
    start_works(spawn, results)


def test_another_users_run_is_refused_and_untouched(spawn: Spawner) -> None:
    top = Path(tempfile.mkdtemp(prefix="solorun-test-"))
    top.chmod(0o755)
    (top / "mine").mkdir()
    child = spawn.python(HOLDING, top / "mine")
    try:
        child.wait_for("holding")
        child.signal(signal.SIGSTOP)

        def ask() -> str:
            found = diagnose(look(top / "mine", time.time(), Settings()))
            return f"{type(found).__name__}: {getattr(found, 'reason', '')}: {getattr(found, 'proofs', '')}"

        said = as_nobody(ask)
        assert said.startswith("OutOfReach")
        assert "root" in said
        assert f"PID {child.pid}: training.lock names it" in said
        assert child.popen.poll() is None
    finally:
        child.signal(signal.SIGKILL)
        child.wait()
        shutil.rmtree(top)


def test_on_a_terminal_it_asks_and_no_changes_nothing(spawn: Spawner, results: Path) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    before = snapshot(results)
    for answer, code in ((b"\n", 4), (b"y\n", 0)):
        screen = Terminal([sys.executable, "-m", "solorun", "recover", str(results)], spawn.environment())
        try:
            screen.wait_for("[y/N]")
            assert snapshot(results) == before
            screen.type(answer)
            assert screen.wait() == code
            broken = [
                line for line in screen.seen.splitlines() if "mine" not in line and str(results.parent) not in line
            ]
            assert all(len(line) <= 80 for line in broken), "all but the lines with the path, which is not broken"
        finally:
            screen.close()
    assert "training.lock" not in names(results)


def test_what_it_found_and_did_as_json(spawn: Spawner, results: Path) -> None:
    (results / "checkpoint_5.safetensors").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "solorun", "recover", "--json", "--yes", str(results)],
        capture_output=True, check=True, env=spawn.environment(),
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert (told["schema"], told["scenario"], told["done"]) == (1, "torn files", True)
    assert told["quarantined"] == [{"name": "checkpoint_5.safetensors", "why": "it is empty"}]
    assert (Path(told["quarantine"]) / "checkpoint_5.safetensors").exists()


def test_what_was_typed_before_the_plan_was_shown_is_no_answer(spawn: Spawner, results: Path) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    late = f"echo ready; read first; exec '{sys.executable}' -m solorun recover \"$0\""
    screen = Terminal(["sh", "-c", late, str(results)], spawn.environment())
    try:
        screen.wait_for("ready")
        screen.type(b"first\ny\n")
        screen.wait_for("[y/N]")
        screen.type(b"\n")
        assert screen.wait() == 4
        assert "training.lock" in names(results)
    finally:
        screen.close()
