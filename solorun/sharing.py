"""May a run use the accelerator of this machine, or does another run use it already?

Another run is a training run, a Python process, or a process that cannot be seen from here. Other programs on the
device (a desktop, a model server) are only told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from solorun.errors import NotSafe, system_problem

if TYPE_CHECKING:
    from solorun.accelerator import Accelerators, Device, Use
    from solorun.findings import AcceleratorInUse
    from solorun.neighbours import Training
    from solorun.process.table import Seen

SHARE_VARIABLE = "SOLORUN_SHARE_ACCELERATOR"
"""1 in the environment of a run whose person allowed it to share."""


def is_shared(environment: Mapping[str, str]) -> bool:
    """Whether sharing was allowed by whoever started this process."""
    return environment.get(SHARE_VARIABLE, "") not in ("", "0")


def require_accelerator(
    kind: str,
    *,
    share: bool = False,
    tell: Callable[[str], None] = lambda _line: None,
    launcher: int | None = None,
) -> None:
    """For a trainer, after it holds its directory and before it uses its device: refuse to share an accelerator.

    Args:
        kind: where it is going to train: cuda, mps or cpu.
        share: whether its person allowed sharing; SOLORUN_SHARE_ACCELERATOR=1 in the environment does so too, and
            `share_accelerator = true` in solorun.toml.
        tell: told in one line, on a CPU, that another run shares the machine; elsewhere that this cannot be known.
        launcher: as in `hold`: all that it started is this run.

    Raises:
        NotSafe: another run uses the accelerator.
        BadUsage: solorun.toml cannot be read.
        SolorunError: the system does not let anybody look for other runs.
    """
    from solorun import accelerator, neighbours, process, settingsfile

    if share or is_shared(os.environ) or settingsfile.load(Path.cwd(), os.environ).share_accelerator:
        return
    try:
        table = process.census()
    except OSError as error:
        raise system_problem(error) from None
    mine = neighbours.family(table, os.getpid(), os.environ.get(process.RUN_ID_VARIABLE, ""))
    if launcher:
        mine |= neighbours.family(table, launcher)
    runs = neighbours.trainings(table, mine)
    if kind == "cpu":
        tell_of(runs, neighbours.program_of(process.argv(os.getpid()), os.getcwd()), tell)
        return
    # Of two that start at once, each would see the other: the elder goes on.
    born = process.identify_self().started
    elder = tuple(run for run in runs if run.leader.process.started < born)
    seen = accelerator.read()
    devices = tuple(d for d in accelerator.visible(seen.devices, os.environ) if d.kind == kind)[:1]
    refuse(in_use(devices, elder, table, mine, shared=False))
    tell_of_unknown(seen, os.environ, tell)


def tell_of(runs: tuple[Training, ...], program: str, tell: Callable[[str], None]) -> None:
    """One line on the other runs of this machine: on the one with the same program, if there is one.

    Args:
        runs: they.
        program: what is going to be started here (`neighbours.program_of`).
        tell: is told, unless there are none.
    """
    from solorun.findings import who_runs

    same = [run for run in runs if program and run.program == program]
    if not runs:
        return
    run = (same or list(runs))[0]
    what = "the same program runs on this machine already" if same else "another run shares this machine"
    more = f"; {len(runs) - 1} more: solorun check" if len(runs) > 1 else ""
    tell(f"{what}: {who_runs(run, directory_held_by(run.leader.row.pid))}{more}")


def tell_of_unknown(seen: Accelerators, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """One line where nobody could tell whether a device that this run may use is in use: it starts nevertheless.

    Args:
        seen: what was told of them.
        environment: of the run.
        tell: is told.
    """
    if seen.may_be_in_use and environment.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        tell(f"whether another run uses the accelerator cannot be told: {seen.problem}")


def directory_held_by(pid: int) -> str:
    """The results directory that a process holds; empty for none, or where its open directories cannot be told."""
    from solorun import process
    from solorun.label import read_owner

    for path in process.open_directories(pid) or ():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            owner = read_owner(fd)
        except OSError:
            continue
        finally:
            os.close(fd)
        if owner is not None and owner.process.pid == pid and process.is_alive(owner.process):
            return path
    return ""


def refuse(findings: tuple[AcceleratorInUse, ...]) -> None:
    """Nothing, where nothing blocks.

    Raises:
        NotSafe: something does; tells the first, and the others as evidence.
    """
    blocking = [finding for finding in findings if finding.severity == "blocks"]
    if blocking:
        more = tuple(finding.what for finding in blocking[1:4])
        raise NotSafe(blocking[0].what, blocking[0].next_step, more)


def in_use(
    devices: tuple[Device, ...],
    runs: tuple[Training, ...],
    table: tuple[Seen, ...],
    mine: frozenset[int],
    *,
    shared: bool,
) -> tuple[AcceleratorInUse, ...]:
    """Who uses these devices, one finding for each run and device. Pure.

    Args:
        devices: those that a start would use.
        runs: other training runs.
        table: the process table.
        mine: PIDs that are no neighbours.
        shared: whether sharing is allowed; then nothing blocks.
    """
    from solorun.findings import AcceleratorInUse, who_runs

    found: list[AcceleratorInUse] = []
    for device in devices:
        if device.users is None:
            users = [run for run in runs if _may_use_mps(run)]
            severity: Literal["blocks", "warns"] = "warns" if shared else "blocks"
            found += [
                AcceleratorInUse(f"{device.kind} ({device.name})", who_runs(run), None, severity) for run in users
            ]
        else:
            found += _on_cuda(device, tuple(use for use in device.users if use.pid not in mine), runs, table, shared)
    return tuple(found)


def _may_use_mps(run: Training) -> bool:
    """macOS tells of no process what it uses: every training run is taken to use it unless it says otherwise."""
    from solorun.neighbours import is_python, says_cpu

    trains = bool(run.program) or any(is_python(member.row.argv) for member in run.members)
    return trains and not any(says_cpu(member.row.argv) for member in run.members)


def _on_cuda(
    device: Device, uses: tuple[Use, ...], runs: tuple[Training, ...], table: tuple[Seen, ...], shared: bool
) -> list[AcceleratorInUse]:
    from solorun.findings import AcceleratorInUse, Who, who_is, who_runs
    from solorun.neighbours import is_python

    name = f"cuda {device.index} ({device.name})"
    by_pid = {one.row.pid: one for one in table}
    found: list[AcceleratorInUse] = []
    left = {use.pid: use.memory for use in uses}
    for run in runs:
        held = [left.pop(pid) for pid in sorted(run.pids) if pid in left]
        if held:
            memory = sum(part or 0 for part in held) or None
            found.append(AcceleratorInUse(name, who_runs(run), memory, "warns" if shared else "blocks"))
    for pid, memory in left.items():
        one = by_pid.get(pid)
        is_a_run = one is None or is_python(one.row.argv)
        who = Who(pid) if one is None else who_is(one)
        found.append(AcceleratorInUse(name, who, memory, "blocks" if is_a_run and not shared else "warns"))
    return found
