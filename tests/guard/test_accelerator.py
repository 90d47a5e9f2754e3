"""Accelerators and who uses them. No GPU is here: `nvidia-smi` is a stand-in, by injected answers or on PATH."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solorun import accelerator
from solorun.accelerator import Accelerators, Device, Use, visible

from .stage import DEADLINE_S

MIB = 1024 * 1024
DEVICES = "0, GPU-aa11, NVIDIA H100 80GB HBM3, 81559, 1024\n1, GPU-bb22, NVIDIA H100 80GB HBM3, 81559, 0\n"
USERS = "GPU-aa11, 4242, 1000\n"
ZERO = Device("cuda", 0, "GPU-aa11", "NVIDIA H100 80GB HBM3", 81559 * MIB, 1024 * MIB, (Use(4242, 1000 * MIB),))
ONE = Device("cuda", 1, "GPU-bb22", "NVIDIA H100 80GB HBM3", 81559 * MIB, 0, ())


def answers(devices: str = DEVICES, users: str = USERS) -> Callable[[tuple[str, ...]], str]:
    return lambda command: devices if command[1].startswith("--query-gpu") else users


def test_cuda_devices_and_their_users_are_listed() -> None:
    assert accelerator.read(answers(), "linux") == Accelerators((ZERO, ONE))


@pytest.mark.parametrize("memory", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]"])
def test_memory_that_the_driver_does_not_tell_is_none(memory: str) -> None:
    found = accelerator.read(
        answers(f"0, GPU-aa11, GB10, {memory}, {memory}\n", f"GPU-aa11, 4242, {memory}\n"), "linux"
    )
    assert found == Accelerators((Device("cuda", 0, "GPU-aa11", "GB10", None, None, (Use(4242, None),)),))


def test_a_driver_that_does_not_answer_is_told_and_nothing_is_claimed() -> None:
    def never(_command: tuple[str, ...]) -> str:
        raise TimeoutError

    problem = "nvidia-smi did not answer within 10 s"
    assert accelerator.read(never, "linux") == Accelerators((), problem, may_be_in_use=True)


def test_a_driver_without_a_device_is_told() -> None:
    def fails(_command: tuple[str, ...]) -> str:
        raise OSError("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver")

    found = accelerator.read(fails, "linux")
    assert found.devices == ()
    assert "NVIDIA-SMI has failed" in found.problem
    assert not found.may_be_in_use


def test_a_mac_has_one_device_whose_users_cannot_be_listed() -> None:
    (found,) = accelerator.read(None, "darwin", lambda: "arm64").devices
    assert (found.kind, found.users) == ("mps", None)
    assert accelerator.read(None, "darwin", lambda: "x86_64") == Accelerators()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, (ZERO, ONE)), ("0", (ZERO,)), ("1,0", (ONE, ZERO)), ("GPU-bb", (ONE,)), ("", ()), ("-1", ()),
        ("1,-1,0", (ONE,)), ("7", ()), ("MIG-aa11/1/0", (ZERO, ONE)),
    ],
)  # fmt: skip
def test_the_environment_chooses_devices(chosen: str | None, expected: tuple[Device, ...]) -> None:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible((ZERO, ONE), environment) == expected


@pytest.fixture
def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A stand-in for `nvidia-smi` on PATH, because no GPU is here: a shell script with these lines."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(accelerator, "_ASK_S", DEADLINE_S)  # a busy machine may not get round to a script in 10 s

    def put(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_the_program_itself_is_asked_on_path(fake_smi: Callable[[str], None]) -> None:
    fake_smi(f'case $1 in *--query-gpu*) printf "%s" "{DEVICES}";; *) printf "%s" "{USERS}";; esac')
    assert accelerator.read(system="linux") == Accelerators((ZERO, ONE))
    fake_smi("echo No devices were found; exit 6")
    assert accelerator.read(system="linux") == Accelerators((), "No devices were found")


def test_a_program_that_hangs_is_given_up(fake_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_ASK_S", 0.2)
    fake_smi("exec sleep 60")
    assert accelerator.read(system="linux").problem.startswith("nvidia-smi did not answer")


def test_without_the_program_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerator.read(system="linux") == Accelerators()
