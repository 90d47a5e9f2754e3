"""`solorun check [DIR ...]`: is it safe to start? Clears locks that are proven stale, and says so."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from pathlib import Path

from solorun.accelerator import Device
from solorun.cli.places import current_settings, note, roots
from solorun.cli.render import next_steps, typed
from solorun.disk import Room
from solorun.findings import (
    AcceleratorInUse,
    AcceleratorUnknown,
    Finding,
    LockInUse,
    LowDisk,
    LowMemory,
    NotWritable,
    OrphanLeft,
    OtherTraining,
    SameProgramElsewhere,
    StaleCleared,
    as_facts,
)
from solorun.memory import describe
from solorun.preflight import Safe, Sight, judge, look
from solorun.rundir import find_all
from solorun.status import wall_clock
from solorun.wording import printable, size

_WORDS = {"blocks": "NOT SAFE", "warns": "warning", "tells": "safe"}
_COLUMNS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument(
        "directories", nargs="*", metavar="DIR", help="results directories; default: all that are known"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--share-accelerator", action="store_true", help="another run on the accelerator is a warning only"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found, section by section, and the verdict last; 0 when nothing blocks a start, else 4."""
    settings = current_settings()
    named = roots(arguments.directories, settings, tell=note)
    if not arguments.directories:
        named = find_all(named)
    sight = look(
        [*map(Path, named)], wall_clock(), settings,
        whole_machine=not arguments.directories, share_accelerator=arguments.share_accelerator,
    )  # fmt: skip
    findings = judge(sight, settings)
    blocking = sum(finding.severity == "blocks" for finding in findings)
    if arguments.json:
        print(json.dumps(_facts(sight, findings, safe=not blocking), indent=1))
    else:
        print("\n".join(_report(sight, findings)))
        verdict = f"NOT SAFE: {blocking} finding{'s' * (blocking > 1)}" if blocking else "safe to start"
        print(verdict)
    return 4 if blocking else 0


def _facts(sight: Sight, findings: tuple[Finding, ...], *, safe: bool) -> dict[str, object]:
    rows = [
        {"directory": str(one.directory), "safe": True, "cleared": one.cleared}
        if isinstance(one, Safe)
        else {**one.row, "safe": False}
        for one in sight.directories
    ]
    return {
        "schema": 1,
        "safe": safe,
        "directories": rows,
        "findings": [as_facts(finding) for finding in findings],
        "memory": dataclasses.asdict(sight.memory) if sight.memory else None,
        "disks": [{**dataclasses.asdict(room), "directory": str(room.directory)} for room in sight.rooms],
        "accelerators": [dataclasses.asdict(device) for device in sight.accelerators.devices],
    }


def _report(sight: Sight, findings: tuple[Finding, ...]) -> list[str]:
    """Six sections: one line each on what was seen, and under it what was found."""
    free = [one.directory for one in sight.directories if isinstance(one, Safe)]
    taken = len(sight.directories) - len(free)
    seen = f"{len(free)} free" + (f", {taken} not" if taken else "") if sight.directories else "no run was ever here"
    runs = _of(findings, OtherTraining, SameProgramElsewhere)
    gone = _of(findings, OrphanLeft)
    used = _of(findings, AcceleratorInUse, AcceleratorUnknown)
    devices = [*map(_device, sight.accelerators.devices)] or ["none"]
    rooms = _rooms(sight.rooms)
    lines = _section("directories", seen, _of(findings, LockInUse, NotWritable, StaleCleared))
    if not sight.whole_machine:
        told = {finding.directory for finding in findings if isinstance(finding, StaleCleared | NotWritable)}
        lines += [f"  safe      {typed(directory)}" for directory in free if directory not in told]
    lines += _section("other training", "none" if not runs else str(len(runs)), runs)
    lines += _section("orphans", "none" if not gone else str(len(gone)), gone)
    told_of_memory = describe(sight.memory) if sight.memory else "cannot be told"
    lines += _section("memory", told_of_memory, _of(findings, LowMemory))
    lines += _section("disk", rooms, _of(findings, LowDisk))
    return lines + _section("accelerator", devices, used)


def _of(findings: tuple[Finding, ...], *kinds: type[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if isinstance(finding, kinds))


def _section(name: str, seen: str | list[str], findings: tuple[Finding, ...]) -> list[str]:
    first, *more = [seen] if isinstance(seen, str) else seen
    lines = [f"{name:16}{first}", *(f"{'':16}{line}" for line in more)]
    return lines + [line for finding in findings for line in _finding(finding)]


def _finding(finding: Finding) -> list[str]:
    text, following = finding.what, finding.next_step
    if isinstance(finding, LockInUse):
        where = typed(finding.directory)
        text, following = f"{where}  {finding.situation}", finding.following or next_steps(finding.state, where)
    elif isinstance(finding, NotWritable):
        text = f"{typed(finding.directory)}  you may not write there"
    elif isinstance(finding, StaleCleared):
        text = f"{typed(finding.directory)}  stale lock cleared: {finding.proof}"
    lines = textwrap.wrap(
        printable(text), _COLUMNS, initial_indent=f"  {_WORDS[finding.severity]:10}", subsequent_indent=" " * 12,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return lines + ([f"    next: {printable(following)}"] if following else [])


def _device(device: Device) -> str:
    name = f"{device.kind} {device.index} {device.name}" if device.kind == "cuda" else f"{device.kind} ({device.name})"
    if device.total is None or device.used is None:
        return name
    return f"{name}, {size(device.total - device.used)} of {size(device.total)} free"


def _rooms(rooms: tuple[Room, ...]) -> list[str]:
    """One line for each file system; the directory only where there are several."""
    lines = []
    for room in rooms:
        where = f" for {typed(room.directory)}" if len(rooms) > 1 else ""
        fits = f", room for {room.checkpoints:.0f} checkpoints of {size(room.checkpoint)}" if room.checkpoint else ""
        lines.append(f"{size(room.free)} free{where}{fits}")
    return lines or ["cannot be told"]
