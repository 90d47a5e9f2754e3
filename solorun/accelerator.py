"""Accelerators of this machine, and which processes use them. Asks `nvidia-smi`; needs no torch."""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Literal

from solorun.frozen import dataclass

_ASK_S = 10.0
"""Without persistence mode the driver wakes each device anew: seconds on a machine with several."""

_DEVICES = ("index", "uuid", "name", "memory.total", "memory.used")
_USERS = ("gpu_uuid", "pid", "used_memory")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Use:
    """A process on a device.

    Args:
        pid: as the driver tells it; in a container it may be the host's number.
        memory: bytes on the device; None where the driver does not tell.
    """

    pid: int
    memory: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator.

    Args:
        kind: cuda or mps.
        index: its number; for CUDA in the order of the bus, as `nvidia-smi` counts.
        uuid: the driver's name for it; empty for MPS.
        name: for people.
        total: bytes of its own memory; None where it shares the machine's.
        used: bytes of that in use; None likewise.
        users: processes on it; None where they cannot be listed (MPS).
    """

    kind: Literal["cuda", "mps"]
    index: int
    uuid: str
    name: str
    total: int | None
    used: int | None
    users: tuple[Use, ...] | None


@dataclass(frozen=True, slots=True)
class Accelerators:
    """What was seen.

    Args:
        devices: by number.
        problem: why they could not be told, one line; empty when they could.
        may_be_in_use: whether there may be some that others use, though they could not be told.
    """

    devices: tuple[Device, ...] = ()
    problem: str = ""
    may_be_in_use: bool = False


Ask = Callable[[tuple[str, ...]], str]
"""What a command prints. Raises TimeoutError when it does not answer, OSError when it cannot be run or fails."""


def read(
    ask: Ask | None = None, system: str = sys.platform, machine: Callable[[], str] = platform.machine
) -> Accelerators:
    """Look which accelerators are here and who uses them.

    Args:
        ask: runs a command.
        system: `sys.platform`.
        machine: the processor's architecture.
    """
    if system == "darwin":
        # Every process may use the one device at any time, and macOS lists none of them.
        arm = machine() == "arm64"
        return Accelerators((Device("mps", 0, "", "Apple GPU", None, None, None),) if arm else ())
    if ask is None and not _is_on_path("nvidia-smi"):
        return Accelerators()
    return _read_cuda(ask or _ask)


def visible(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that a command with this environment can use: CUDA_VISIBLE_DEVICES, by number or UUID.

    As the driver does, it stops at the first entry that names no device.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return devices
    found = [device for device in devices if device.kind != "cuda"]
    for word in (part.strip() for part in chosen.split(",")):
        named = [d for d in devices if d.kind == "cuda" and word and (word == str(d.index) or d.uuid.startswith(word))]
        if not named and word.startswith("MIG-"):  # a slice of a device that is not told: any of them may be meant
            return devices
        if not named:
            break
        found.append(named[0])
    return tuple(found)


def _read_cuda(ask: Ask) -> Accelerators:
    try:
        listed = _rows(ask(_query("gpu", _DEVICES)), len(_DEVICES))
        used = _rows(ask(_query("compute-apps", _USERS)), len(_USERS)) if listed else []
    except TimeoutError:
        return Accelerators((), f"nvidia-smi did not answer within {_ASK_S:g} s", may_be_in_use=True)
    except OSError as error:  # installed, but there is no device or no driver: then nothing can use one
        return Accelerators(problem=str(error))
    users: dict[str, list[Use]] = {}
    for uuid, pid, memory in used:
        if pid.isdigit():
            users.setdefault(uuid, []).append(Use(int(pid), _bytes(memory)))
    return Accelerators(
        tuple(
            Device("cuda", int(index), uuid, name, _bytes(total), _bytes(taken), tuple(users.get(uuid, ())))
            for index, uuid, name, total, taken in listed
            if index.isdigit()
        )
    )


def _query(what: str, fields: tuple[str, ...]) -> tuple[str, ...]:
    return ("nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits")


def _rows(text: str, width: int) -> list[list[str]]:
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if len(row) == width]


def _bytes(mebibytes: str) -> int | None:
    """The number, or None for `[N/A]` and its kin, as under WSL and for a sliced device."""
    return int(mebibytes) * _MIB if mebibytes.isdigit() else None


def _is_on_path(program: str) -> bool:
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return any(os.access(os.path.join(place, program), os.X_OK) for place in places if place)


def _ask(command: tuple[str, ...]) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ASK_S, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(command[0]) from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise OSError(said[0] if said else f"{command[0]} failed with exit status {done.returncode}")
    return done.stdout
