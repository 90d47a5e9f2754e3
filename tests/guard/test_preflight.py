"""What to look at before a start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import solorun
from solorun import accelerator, preflight, process
from solorun.accelerator import Accelerators, Device, Use
from solorun.disk import Room
from solorun.errors import NotSafe
from solorun.findings import as_facts
from solorun.memory import Memory
from solorun.neighbours import Orphan, Training, trainings
from solorun.owner import encode_owner
from solorun.preflight import Safe, Sight, Unsafe, judge, require_safe_start
from solorun.runstate import Left, Orphaned, Running, Unreadable
from solorun.settings import RunEntry, Settings
from solorun.sharing import in_use, require_accelerator

from .stage import (
    DEADLINE_S,
    HOLDING,
    Child,
    Spawner,
    a_dead_pid,
    as_nobody,
    events,
    label_of,
    names,
    owner_of,
    snapshot,
    wait_until,
)
from .test_neighbours import INIT, seen

GIB = 1 << 30


def check(directory: Path) -> Safe | Unsafe:
    (found,) = preflight.check([directory], time.time(), Settings())
    return found


def test_a_directory_that_is_not_there_yet_or_empty_or_idle_is_safe(results: Path) -> None:
    assert check(results / "new") == Safe(results / "new", "")
    assert check(results) == Safe(results, "")
    (results / "training.log").write_text("line\n")
    assert check(results) == Safe(results, "")


def test_a_stale_lock_is_cleared_and_told(results: Path) -> None:
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    assert check(results) == Safe(results, f"PID {dead} is dead")
    assert names(results) == {"events.jsonl"}
    assert events(results) == ["cleared stale lock"]
    assert check(results) == Safe(results, "")


def test_a_live_run_is_not_safe_and_untouched(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    before = {name: facts for name, facts in snapshot(results).items() if name != "progress"}
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Running)
    assert found.row["pid"] == child.pid
    assert {name: facts for name, facts in snapshot(results).items() if name != "progress"} == before


def test_an_old_style_run_is_not_safe_and_untouched(results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    assert isinstance(check(results), Unsafe)
    assert label_of(results) == os.getpid()


def test_survivors_are_not_safe_and_the_lock_stays(spawn: Spawner, results: Path) -> None:
    run_id = f"run-{spawn.mark}"
    child = spawn.python("import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run_id})
    child.wait_for("up")
    dead = replace(process.identify_self(), pid=a_dead_pid())
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, dead, run_id)))
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Orphaned)
    assert names(results) == {"training.owner.json"}


def test_what_a_well_ended_run_left_behind_is_not_safe_either(spawn: Spawner, results: Path) -> None:
    with solorun.hold(results) as run:
        child = spawn.python(
            "import time; print('up', flush=True); time.sleep(600)", env={process.RUN_ID_VARIABLE: run.run_id}
        )
        child.wait_for("up")
    found = check(results)
    assert isinstance(found, Unsafe)
    assert isinstance(found.state, Orphaned)


def test_another_hosts_run_is_not_safe_and_untouched(results: Path) -> None:
    me = process.identify_self()
    there = replace(me, here=replace(me.here, boot="b", machine="m", host="far"))
    (results / "training.owner.json").write_bytes(encode_owner(owner_of(results, there)))
    found = check(results)
    assert isinstance(found, Unsafe)
    assert found.row["state"] == "foreign"
    assert names(results) == {"training.owner.json"}


def test_without_the_right_to_write_a_stale_lock_stands_and_is_not_safe(open_results: Path) -> None:
    open_results.chmod(0o755)
    (open_results / "training.lock").write_text(f"{a_dead_pid()}\n")
    answer = as_nobody(lambda: isinstance(found := check(open_results), Unsafe) and isinstance(found.state, Left))
    assert answer is True
    assert names(open_results) == {"training.lock"}


def test_what_cannot_be_looked_at_is_not_safe(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "dangling"):
        found = check(tmp_path / name)
        assert isinstance(found, Unsafe)
        assert isinstance(found.state, Unreadable)


# The verdict, from made-up sights.

OTHER = Training(seen(70, 1, "python train.py"), "/p/train.py", (seen(70, 1, "python train.py"),))
PROVEN = Orphan(seen(80, 1, "python w", run_id="over"), True, "its run over is over")
HOG = Orphan(seen(81, 1, "python serve.py"), False, "Python with neither parent nor terminal")
CLEAR = Sight((), True, (), {}, (), Memory(16 * GIB, 8 * GIB, 0, 0, None, None), (), Accelerators(), ())
CUDA = Device("cuda", 0, "GPU-aa", "H100", 80 * GIB, GIB, (Use(70, GIB),))
MPS = Device("mps", 0, "", "Apple GPU", None, None, None)
FULL = Room(Path("r"), 10, None, 100)
LOW = Room(Path("r"), 150, None, 100)
BUSY = Unsafe(Path("r"), Running(None, None), {"state": "running", "detail": "training", "pid": 70, "run_id": "x"})  # type: ignore[arg-type]


def on_cuda(shared: bool) -> tuple[Any, ...]:
    return in_use((CUDA,), (OTHER,), (INIT, OTHER.leader), frozenset(), shared=shared)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"directories": (Safe(Path("r"), ""),)}, []),
        ({"directories": (Safe(Path("r"), "PID 3 is dead"),)}, ["tells stale lock cleared"]),
        ({"directories": (BUSY,)}, ["blocks lock in use"]),
        ({"runs": (OTHER,)}, ["blocks other training"]),
        ({"runs": (OTHER,), "whole_machine": False}, ["warns other training"]),
        ({"runs": (OTHER,), "directories": (BUSY,)}, ["blocks lock in use"]),
        ({"runs": (OTHER,), "directories": (replace(BUSY, row={**BUSY.row, "pid": 9}),), "held": {70: "r"}},
         ["blocks lock in use"]),
        ({"orphans": (PROVEN, HOG)}, ["blocks orphan", "warns orphan"]),
        ({"orphans": (PROVEN, HOG), "whole_machine": False}, ["warns orphan", "warns orphan"]),
        ({"memory": Memory(16 * GIB, 1, 0, 0, None, None)}, ["warns low memory"]),
        ({"memory": None}, []),
        ({"rooms": (LOW,)}, ["warns low disk"]),
        ({"rooms": (FULL,)}, ["blocks low disk"]),
        ({"accelerators": Accelerators((), "no answer")}, ["warns accelerator unknown"]),
        ({"in_use": on_cuda(False), "whole_machine": False}, ["blocks accelerator in use"]),
        ({"in_use": on_cuda(True)}, ["warns accelerator in use"]),
    ],
)  # fmt: skip
def test_what_blocks_and_what_warns(facts: dict[str, Any], expected: list[str]) -> None:
    found = judge(replace(CLEAR, **facts), Settings())
    assert [f"{finding.severity} {as_facts(finding)['kind']}" for finding in found] == expected
    assert all(finding.what and "\n" not in finding.what + finding.next_step for finding in found)
    assert all(finding.next_step for finding in found if finding.severity == "blocks")


@pytest.mark.parametrize(("used", "severity"), [((), "warns"), (on_cuda(False), "blocks"), (on_cuda(True), "warns")])
def test_p24_the_same_program_elsewhere_warns_and_blocks_where_it_has_the_accelerator(
    used: tuple[Any, ...], severity: str
) -> None:
    here = (Safe(Path("a"), "", "/p/train.py"), Safe(Path("b"), "", "/p/other.py"))
    sight = replace(CLEAR, whole_machine=False, runs=(OTHER,), directories=here, in_use=used, held={70: "/p/c"})
    found = judge(sight, Settings())[0]
    assert (as_facts(found)["kind"], found.severity) == ("same program elsewhere", severity)
    assert "program of a runs elsewhere already: PID 70 of ada: python train.py into /p/c" in found.what
    assert found.next_step.endswith("solorun stop /p/c")


def test_a_directorys_program_is_the_configured_one_or_the_last_runs(results: Path) -> None:
    settings = Settings(runs=(RunEntry(results, ("python3", "train.py"), Path("/p"), {}),))
    (found,) = preflight.check([results], time.time(), settings)
    assert found == Safe(results, "", "/p/train.py")
    with solorun.hold(results):
        pass
    record = json.loads((results / "run.json").read_text())
    (results / "run.json").write_text(json.dumps({**record, "program": ["python3", "-m", "kssm", "train", "v3"]}))
    assert check(results) == Safe(results, "", "kssm train v3")


# Who uses an accelerator.


def blocking(devices: tuple[Device, ...], *processes: Any, mine: frozenset[int] = frozenset()) -> list[int]:
    """PIDs of whom a start would be refused for."""
    table = (INIT, *processes)
    found = in_use(devices, trainings(table), table, mine, shared=False)
    return [finding.who.pid for finding in found if finding.severity == "blocks"]


def users(*pids: int) -> Device:
    return replace(CUDA, users=tuple(Use(pid, GIB) for pid in pids))


def test_on_cuda_runs_python_and_the_unseen_block_and_other_programs_only_warn() -> None:
    run, worker = seen(70, 1, "python train.py"), seen(71, 70, "python train.py")
    notebook, server = seen(72, 1, "python -m ipykernel"), seen(73, 1, "ollama serve")
    table = (run, worker, notebook, server)
    assert blocking((users(71),), *table) == [70]
    assert blocking((users(72, 73, 99),), *table) == [72, 99]
    assert blocking((users(72, 99),), *table, mine=frozenset({72, 99})) == []
    assert blocking((users(),), *table) == []


def test_on_mps_every_training_run_blocks_unless_it_says_that_it_is_on_the_cpu() -> None:
    assert blocking((MPS,), seen(70, 1, "python train.py")) == [70]
    assert blocking((MPS,), seen(70, 1, "python train.py --device cpu")) == []
    assert blocking((MPS,), seen(70, 1, "./sim", run_id="r")) == []
    assert blocking((MPS,), seen(70, 1, "python serve.py")) == []
    assert blocking((), seen(70, 1, "python train.py")) == []


def test_memory_on_the_device_and_the_way_out_are_told() -> None:
    (found,) = on_cuda(False)
    assert found.what.startswith("1.0 GiB of cuda 0 (H100) is used by PID 70 of ada: python train.py in /p")
    assert found.next_step == "wait, set CUDA_VISIBLE_DEVICES to another, or add --share-accelerator"


# Real processes.

TRAINS = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def trainer(spawn: Spawner) -> int:
    """PID of a training process that no guard knows."""
    program = spawn.program("train_other.py", TRAINS)
    child = spawn(sys.executable, str(program), cwd=spawn.place)
    child.wait_for("up")
    return child.pid


def checked(spawn: Spawner, *words: str | Path, **options: Any) -> tuple[int, dict[int | str, dict[str, Any]]]:
    """Exit code of `solorun check --json`, and its findings by PID; those of no process by their kind."""
    child = spawn.solorun("check", "--json", *words, **options)
    code = child.wait()
    findings = json.loads(child.text())["findings"]
    told = [finding["pid"] for finding in findings if finding["pid"]]
    assert len(told) == len(set(told)), "one process is told of twice"
    return code, {finding["pid"] or finding["kind"]: finding for finding in findings}


def test_p1_another_training_process_is_found_and_the_machine_is_not_safe(
    spawn: Spawner, trainer: int, tmp_path: Path
) -> None:
    code, found = checked(spawn, cwd=tmp_path)
    assert code == 4
    assert (found[trainer]["kind"], found[trainer]["severity"]) == ("other training", "blocks")
    assert found[trainer]["command"][-1].endswith("train_other.py")
    _code, found = checked(spawn, "named", cwd=tmp_path)
    assert found[trainer]["severity"] == "warns"


def test_p24_the_same_program_in_another_directory_is_told(spawn: Spawner, tmp_path: Path) -> None:
    program = spawn.program("train_same.py", TRAINS)
    (tmp_path / "solorun.toml").write_text(
        f"[runs.a]\ncommand = [{json.dumps(sys.executable)}, {json.dumps(str(program))}]"
    )
    child = spawn.solorun("start", "b", "--", sys.executable, program, cwd=tmp_path)
    child.wait_for("up")
    pid = label_of(tmp_path / "b")
    _code, found = checked(spawn, "a", cwd=tmp_path)
    assert (found[pid]["kind"], found[pid]["severity"]) == ("same program elsewhere", "warns")
    assert found[pid]["directory"] == "a"
    assert f"into {tmp_path.resolve() / 'b'}" in found[pid]["what"]


def test_p3_what_is_left_of_a_run_is_an_orphan(spawn: Spawner, tmp_path: Path) -> None:
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {TRAINS!r}]).pid, flush=True)"
    spawn.python(code, env={process.RUN_ID_VARIABLE: f"run-{spawn.mark}"}).wait()
    pid = int(spawn.children[0].text().split()[0])
    row = next(one.row for one in process.census() if one.row.pid == pid)
    if row.parent != 1:
        pytest.skip("another process than the first one adopts orphans here")
    status, found = checked(spawn, cwd=tmp_path)
    assert status == 4
    assert (found[pid]["kind"], found[pid]["severity"]) == ("orphan", "blocks")
    assert found[pid]["next"].endswith(f"kill {pid}")


def test_a_run_whose_guard_was_killed_is_no_orphan(spawn: Spawner, tmp_path: Path) -> None:
    program = spawn.program("holding.py", HOLDING)
    guard = spawn.solorun("start", "far", "--", sys.executable, program, "far", cwd=tmp_path)
    wait_until(lambda: label_of(tmp_path / "far"))
    guard.wait_for("holding")
    pid = label_of(tmp_path / "far")
    guard.popen.kill()
    guard.wait()
    _code, found = checked(spawn, "other", cwd=tmp_path)
    assert (found[pid]["kind"], found[pid]["directory"]) == ("other training", str(tmp_path.resolve() / "far"))


def test_a_check_clears_a_stale_lock_and_says_so(spawn: Spawner, results: Path) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    code, found = checked(spawn, results)
    assert (code, found["stale lock cleared"]["directory"]) == (0, str(results))
    assert not (results / "training.lock").exists()


def test_p25_no_room_for_the_next_checkpoint_is_not_safe(spawn: Spawner, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        (place / "checkpoint_5.pt").write_bytes(bytes(600_000))
        code, found = checked(spawn, place)
        assert (code, found["low disk"]["severity"]) == (4, "blocks")
    finally:
        subprocess.run(["umount", place], check=True)


# A start that would share the accelerator. No GPU is here: `nvidia-smi` is a stand-in on PATH.


@pytest.fixture
def a_gpu_used_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """This process takes a stand-in for `nvidia-smi`, which names one device and this user of it."""
    monkeypatch.delenv("SOLORUN_SHARE_ACCELERATOR")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(accelerator, "_ASK_S", DEADLINE_S)

    def put(pid: int) -> None:
        place = tmp_path / "bin"
        place.mkdir()
        devices, uses = "0, GPU-aa, H100, 81559, 1024", f"GPU-aa, {pid}, 1000"
        (place / "nvidia-smi").write_text(f'#!/bin/sh\ncase $1 in *-gpu*) echo "{devices}";; *) echo "{uses}";; esac\n')
        (place / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")

    return put


PATIENT = """
import sys
from solorun import accelerator
from solorun.cli.main import main
accelerator._ASK_S = 60.0  # a busy machine may not get round to a stand-in for `nvidia-smi` within 10 s
sys.exit(main(sys.argv[1:]))
"""
"""The command, which waits for the accelerator's answer as long as it takes."""


def patient(spawn: Spawner, *words: str | Path) -> Child:
    """That command with these words."""
    return spawn(sys.executable, str(spawn.program("solorun", PATIENT)), *map(str, words))


def start_here(results: Path, *, share: bool = False, argv: tuple[str, ...] = ("python3", "x.py")) -> list[str]:
    """What a start would be told."""
    told: list[str] = []
    require_safe_start(results, argv, Settings(), share_accelerator=share, tell=told.append)
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="macOS is not asked for CUDA")
def test_a_start_is_refused_when_another_run_uses_the_accelerator(
    results: Path, trainer: int, a_gpu_used_by: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trainer is a child of this process, and so would be of our own family.
    monkeypatch.setattr(preflight, "family", lambda *_: frozenset())
    a_gpu_used_by(trainer)
    with pytest.raises(NotSafe, match=f"cuda 0 .* is used by PID {trainer} ") as caught:
        start_here(results)
    assert caught.value.exit_code == 4
    assert "--share-accelerator" in caught.value.next_step
    assert start_here(results, share=True) == []
    start_here(results, argv=("python3", "x.py", "--device", "cpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    start_here(results)
    assert names(results) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS is not asked for CUDA")
def test_a_start_goes_on_where_nobody_can_tell_who_uses_the_accelerator_and_says_so(
    results: Path, a_gpu_used_by: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu_used_by(1)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(accelerator, "_ASK_S", 0.2)
    unknown = "whether another run uses the accelerator cannot be told: nvidia-smi did not answer within 0.2 s"
    assert unknown in start_here(results)
    told: list[str] = []
    require_accelerator("cuda", tell=told.append)
    assert told == [unknown]
    assert unknown not in start_here(results, argv=("python3", "x.py", "--device", "cpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unknown not in start_here(results)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS is not asked for CUDA")
def test_a_trainer_by_hand_is_refused_too_and_told_on_the_cpu(
    spawn: Spawner, trainer: int, a_gpu_used_by: Callable[[int], None]
) -> None:
    a_gpu_used_by(trainer)
    code = """
        import sys, solorun
        from solorun import accelerator
        accelerator._ASK_S = 60.0
        try:
            solorun.require_accelerator(sys.argv[1], tell=print)
        except solorun.NotSafe as error:
            print("refused", error.what, error.exit_code)
    """
    refused = spawn.python(code, "cuda")
    assert refused.wait() == 0
    assert f"is used by PID {trainer} " in refused.text()
    assert refused.text().endswith(" 4\n")
    told = spawn.python(code, "cpu")
    told.wait()
    assert told.text().startswith("another run shares this machine: PID ")
    assert told.text().count("\n") == 1
    shared = spawn.python(code, "cuda", env={"SOLORUN_SHARE_ACCELERATOR": "1"})
    shared.wait()
    assert shared.text() == ""
    require_accelerator("cuda", share=True)


@pytest.mark.parametrize("youth", [0, 1 << 60])
def test_of_two_trainers_that_start_at_once_on_a_mac_the_elder_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, youth: int
) -> None:
    other = seen(70, 1, "python train.py")
    other = replace(other, process=replace(other.process, started=youth))
    monkeypatch.delenv("SOLORUN_SHARE_ACCELERATOR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "census", lambda: (INIT, other))
    monkeypatch.setattr("solorun.accelerator.read", lambda: Accelerators((MPS,)))
    if youth:
        require_accelerator("mps")
        return
    with pytest.raises(NotSafe, match=r"mps \(Apple GPU\) is used by PID 70 "):
        require_accelerator("mps")
    require_accelerator("cuda")
    (tmp_path / "solorun.toml").write_text("share_accelerator = true")
    require_accelerator("mps")


def test_a_held_directory_is_left_to_the_claim_without_a_look_at_anything(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOLORUN_SHARE_ACCELERATOR")
    monkeypatch.setattr(process, "census", lambda: pytest.fail("a refusal must come at once"))
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    assert start_here(results) == []


def test_the_same_program_is_told_of_as_such(results: Path, trainer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOLORUN_SHARE_ACCELERATOR")
    monkeypatch.setattr("solorun.accelerator.read", Accelerators)
    # The trainer is a child of this process, and so would be of our own family.
    monkeypatch.setattr(preflight, "family", lambda *_: frozenset())
    (told,) = start_here(results, argv=process.argv(trainer))
    assert told.startswith(f"the same program runs on this machine already: PID {trainer} ")
    (told,) = start_here(results)
    assert told.startswith("another run shares this machine: PID ")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS is not asked for CUDA")
@pytest.mark.parametrize("how", [(), ("--background",)])
def test_p24_start_does_not_share_a_gpu_unless_told_to(
    spawn: Spawner, trainer: int, results: Path, a_gpu_used_by: Callable[[int], None], how: tuple[str, ...]
) -> None:
    a_gpu_used_by(trainer)
    says = 'echo "shared: $SOLORUN_SHARE_ACCELERATOR"'
    refused = patient(spawn, "start", results, *how, "--", "sh", "-c", says)
    assert refused.wait() == 4
    assert f"is used by PID {trainer} " in refused.text()
    assert "next: wait, set CUDA_VISIBLE_DEVICES to another, or add --share-accelerator" in refused.text()
    assert names(results) == set()
    allowed = patient(spawn, "start", results, *how, "--share-accelerator", "--", "sh", "-c", says)
    assert allowed.wait() == 0
    wait_until(lambda: "shared: 1" in (results / "training.log").read_text())


def test_p24_start_on_the_cpu_warns_of_the_other_run_and_goes_on(spawn: Spawner, trainer: int, results: Path) -> None:
    assert trainer
    environment = {"SOLORUN_SHARE_ACCELERATOR": "", "CUDA_VISIBLE_DEVICES": ""}
    child = spawn.solorun("start", results, "--", "true", "--device", "cpu", env=environment)
    assert child.wait() == 0
    assert re.search(r"^solorun: warning: another run shares this machine: PID \d+ of ", child.text(), re.MULTILINE)
