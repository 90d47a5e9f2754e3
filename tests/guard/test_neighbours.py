"""The process table: what trains, what belongs together, what was orphaned."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from solorun import process
from solorun.neighbours import HOG_BYTES, family, is_python, orphans, program_of, says_cpu, trainings
from solorun.owner import Here, ProcessId
from solorun.process import darwin
from solorun.process.table import Row, Seen

from .stage import Spawner, wait_until
from .test_process import AccessDenied, kernel, psutil_that_says

HERE = Here("studio", "studio/1", "boot", "")


def seen(pid: int, parent: int, command: str, **more: object) -> Seen:
    """A process of a made-up table."""
    facts = {"run_id": "", "supervisor": None, "cwd": "/p", **more}
    row = Row(pid, parent, pid * 10, 100.0, 1.0, 1000, False, tuple(command.split()))
    row = replace(row, **{k: v for k, v in facts.items() if k in Row.__slots__})  # type: ignore[arg-type]
    rest = {k: v for k, v in facts.items() if k not in Row.__slots__}
    return Seen(row, ProcessId(HERE, pid, pid * 10), "ada", **rest)  # type: ignore[arg-type]


INIT = seen(1, 0, "/sbin/init")


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("python3 train.py --lr 1", "/p/train.py"),
        ("/opt/v/bin/python3.12 -u -X dev kssm/train_kssm_v3.py", "/p/kssm/train_kssm_v3.py"),
        ("/Library/Python.app/Contents/MacOS/Python /a/run_training.py", "/a/run_training.py"),
        ("pypy3 ../pretrain_gpt.py", "/pretrain_gpt.py"),
        ("python3 -m kssm train v3 --size tiny", "kssm train v3"),
        ("/v/bin/python3 /v/bin/kssm train v3", "kssm train v3"),
        ("kssm train v2", "kssm train v2"),
        ("python -m project.train --x", "-m project.train"),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py", "/p/train.py"),
        ("/v/bin/python /v/bin/torchrun --standalone job.py", "/p/job.py"),
        ("torchrun --standalone --nproc-per-node 2 -m kssm train v3 --output-dir r", "kssm train v3"),
        ("torchrun -m models.serve --config a.py", ""),
        ("accelerate launch finetune.py", "/p/finetune.py"),
        ("./train.py", "/p/train.py"),
        ("vim train.py", ""),
        ("grep -E train_kssm|python.*kssm", ""),
        ("tail -f results/training.log", ""),
        ("python3 -c import-train.py", ""),
        ("python3 -m pytest tests/test_train.py", ""),
        ("python3 test_train.py", ""),
        ("python3 constrain.py", ""),
        ("python3 serve.py --model train.py", ""),
        ("python3 -m solorun start r -- python3 train.py", ""),
        ("sh -c python3 train.py", ""),
        ("kssm sample r", ""),
        ("accelerate config", ""),
        ("python3", ""),
        ("python3 -m", ""),
    ],
)
def test_what_trains_by_its_command_line(command: str, program: str) -> None:
    assert program_of(command.split(), "/p") == program


def test_a_flag_chooses_the_cpu() -> None:
    assert says_cpu(["train.py", "--device", "cpu"])
    assert says_cpu(["train.py", "--device=cpu"])
    assert not says_cpu(["train.py", "--device", "mps", "cpu"])
    assert is_python(["/usr/bin/python3"])
    assert not is_python([])


def test_a_run_is_told_once_with_its_workers_and_launchers() -> None:
    table = [
        INIT,
        seen(10, 1, "bash"), seen(11, 10, "torchrun train.py"), seen(12, 11, "sh wrap"),
        seen(13, 12, "python train.py"),
        seen(14, 13, "python train.py", resident=500), seen(20, 1, "python other/train.py"),
        seen(30, 10, "vim train.py"),
    ]  # fmt: skip
    found = trainings(table)
    assert [(one.leader.row.pid, one.program) for one in found] == [(11, "/p/train.py"), (20, "/p/other/train.py")]
    assert found[0].pids == {11, 13, 14}
    assert found[0].resident == 2500


def test_a_guarded_run_of_any_command_is_a_run() -> None:
    (found,) = trainings([INIT, seen(5, 1, "python -m solorun start r -- ./sim"), seen(6, 5, "./sim", run_id="r1")])
    assert (found.leader.row.pid, found.program) == (6, "")


def test_ones_own_family_and_run_are_no_neighbours() -> None:
    table = [
        INIT, seen(10, 1, "python train_all.py"), seen(11, 10, "python -m kssm train v3"), seen(12, 11, "python w"),
        seen(13, 10, "python train.py"), seen(14, 1, "python train.py", run_id="mine"),
    ]  # fmt: skip
    mine = family(table, 11, "mine")
    assert mine == {1, 10, 11, 12, 14}
    assert [one.leader.row.pid for one in trainings(table, mine)] == [13]


def nothing(_pid: int) -> bool:
    return False


GUARD = ProcessId(HERE, 40, 400)
RECYCLED = ProcessId(HERE, 40, 399)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (seen(9, 1, "python w", run_id="over"), True),
        (seen(9, 1, "./sim", run_id="over", supervisor=RECYCLED), True),
        (seen(9, 1, "./sim", run_id="over", supervisor=GUARD), None),
        (seen(9, 1, "python w", run_id="live"), None),
        (seen(9, 40, "python w", run_id="over"), None),
        (seen(9, 41, "python w", run_id="over"), True),
        (seen(9, 0, "python w", run_id="over"), None),
        (seen(9, 1, "python serve.py", resident=HOG_BYTES), False),
        (seen(9, 1, "python serve.py", cpu_s=60.0), False),
        (seen(9, 1, "python serve.py", cpu_s=60.0, age_s=50.0), None),
        (seen(9, 1, "python serve.py", resident=HOG_BYTES, has_terminal=True), None),
        (seen(9, 1, "python serve.py"), None),
        (seen(9, 1, "python train.py", resident=HOG_BYTES), None),
        (seen(9, 1, "postgres", resident=HOG_BYTES), None),
    ],
)
def test_an_orphan_is_what_is_left_of_a_run_or_looks_so(one: Seen, expected: bool | None) -> None:
    table = [INIT, seen(40, 1, "python -m solorun start"), seen(41, 1, "/lib/systemd/systemd --user"), one]
    found = orphans(table, frozenset(), frozenset({"live"}), nothing)
    assert [orphan.proven for orphan in found] == ([] if expected is None else [expected])


def test_a_process_that_holds_its_directory_or_is_mine_is_no_orphan() -> None:
    table = [INIT, seen(9, 1, "python w", run_id="over")]
    assert orphans(table, frozenset({9}), frozenset(), nothing) == ()
    assert orphans(table, frozenset(), frozenset(), lambda pid: pid == 9) == ()


def test_where_the_first_process_trains_its_workers_are_no_orphans() -> None:
    assert (
        orphans([seen(1, 0, "python train.py"), seen(9, 1, "python w", run_id="r")], frozenset(), frozenset(), nothing)
        == ()
    )


def test_the_real_table_tells_a_child_from_top_to_bottom(spawn: Spawner) -> None:
    program = spawn.program("train_x.py", "import time; print('up', flush=True); time.sleep(600)")
    environment = {"SOLORUN_RUN_ID": "r-1", "SOLORUN_SUPERVISOR": "77:88"}
    child = spawn(sys.executable, str(program), env=environment, cwd=spawn.place)
    child.wait_for("up")
    (found,) = (one for one in process.census() if one.row.pid == child.pid)
    assert found.process == process.identify(child.pid)
    assert (found.row.parent, found.row.argv[-1]) == (os.getpid(), str(program))
    assert (found.run_id, found.supervisor) == ("r-1", ProcessId(process.here(), 77, 88))
    assert (found.user, found.cwd) == (process.user_name(os.getuid()), os.path.realpath(spawn.place))
    assert found.row.resident > 1_000_000
    assert 0 <= found.row.age_s < 100
    child.signal(signal.SIGKILL)
    wait_until(lambda: child.pid not in [one.row.pid for one in process.census()])  # a zombie is no process


def test_darwin_lists_its_table_from_psutil() -> None:
    ps = psutil_that_says(
        born=900.0, ppid=1, cmdline=["python3", "train.py"], cpu_times=SimpleNamespace(user=1.0, system=0.5),
        memory_info=SimpleNamespace(rss=4096), terminal="/dev/ttys001",
    )  # fmt: skip
    found = darwin.table(ps, kernel, lambda: "", lambda: 1000.0)
    assert found[0] == Row(1, 1, 1_000_250_000, 100.0, 1.5, 4096, True, ("python3", "train.py"))


def test_darwin_asks_ps_for_other_users_processes() -> None:
    listed = "    2     1 ??         12:34.56  81920 /usr/bin/python3 train.py\n    9 garbage\n"
    found = darwin.table(psutil_that_says(error=AccessDenied), kernel, lambda: listed)
    assert found == [Row(2, 1, 1_000_250_000, 0.0, 754.56, 81920 * 1024, False, ("/usr/bin/python3", "train.py"))]


def test_darwin_lists_no_zombie() -> None:
    ps = psutil_that_says("zombie", ppid=1, cmdline=[], cpu_times=None, memory_info=None, terminal=None)
    assert darwin.table(ps, kernel, lambda: "") == []


@pytest.mark.parametrize(("time", "seconds"), [("0:00.05", 0.05), ("1-02:03:04", 93_784.0), ("100:00.00", 6000.0)])
def test_darwin_reads_the_times_of_ps(time: str, seconds: float) -> None:
    row = darwin.parse_ps(f"7 1 ttys000 {time} 4 zsh")
    assert row is not None
    assert (row.cpu_s, row.has_terminal) == (seconds, True)


def test_darwin_lists_this_machine_by_the_real_psutil() -> None:
    psutil = pytest.importorskip("psutil")
    mine = next(row for row in darwin.table(psutil, kernel, lambda: "") if row.pid == os.getpid())
    assert (mine.parent, mine.argv) == (os.getppid(), process.argv(os.getpid()))


def test_every_look_at_the_process_table_finds_this_process() -> None:
    """Twice: a submodule of the same name would stand in the function's place after the first look."""
    for _ in range(2):
        assert os.getpid() in [seen.row.pid for seen in process.census()]
