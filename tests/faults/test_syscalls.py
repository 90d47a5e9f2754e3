"""A kill, an error or a short write at each file operation: a sample, and the proof that nothing is overlooked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.syscalls import ROOT, attack

pytestmark = pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not())

A_RUN = """
import os, sys, solorun
from kssm.atomicfile import replacing
from pathlib import Path
results = Path(sys.argv[1])
with solorun.hold(results, settle_s=0) as run:
    run.log("a line")
    run.progress(1, 2, ce=1.5)
    with replacing(results / "checkpoint_1.state") as file:
        file.write(b"state")
        file.write_at(0, b"S")
    run.archive(("checkpoint_*",))
"""
# What strace calls differently, or what is the library's own way of doing it.
SAME = {
    "opendir": "open", "openat": "open", "pwrite64": "pwrite", "renameat": "rename", "linkat": "link",
    "unlinkat": "unlink",
}  # fmt: skip
COUNTED = ("open", "pwrite", "write", "fsync", "rename", "link", "unlink", "mkdir", "ftruncate")


@pytest.mark.timeout(600)  # half a minute on two free cores
def test_no_fault_at_any_call_costs_a_lock_a_checkpoint_a_line_or_a_clear_word() -> None:
    found = attack(2026, 0.0)
    assert not found.failures, str(found)
    assert found.cases >= 200
    assert {f"at {call}" for call in COUNTED} <= set(found.facts)
    faults = {name.split()[0] for name in found.facts}
    assert {"kill", "short", "ENOSPC", "EIO", "EDQUOT", "EROFS", "EACCES", "EINTR", "EMFILE"} <= faults


def test_the_attack_finds_what_careless_code_loses() -> None:
    found = attack(2026, 1.0, ("tests.faults.careless_scenes",))
    assert any("kill" in line and "the newest is 1, and 2 was reported" in line for line in found.failures), str(found)
    assert any("ENOSPC" in line and "a traceback" in line for line in found.failures), str(found)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here (on macOS it does not exist)")
def test_the_attack_sees_every_call_that_the_kernel_sees(tmp_path: Path) -> None:
    scope, trace, board = tmp_path / "scope", tmp_path / "trace", tmp_path / "board"
    scope.mkdir()
    armed = shim.environment(shim.build(tmp_path), shim.Fault(shim.RECORD, 0), shim.FIRST_THREAD, board, scope)
    plain = {**os.environ, "SOLORUN_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
    words = ["strace", "-qq", "-y", "-s", "0", "-o", str(trace), "-e", "trace=%file,%desc"]
    words += [f"--env={name}={armed[name]}" for name in ("LD_PRELOAD", "FAULTS")]
    words += [sys.executable, "-c", A_RUN, str(scope / "results")]
    traced = subprocess.run(words, env=plain, capture_output=True, text=True, check=False)
    if "ptrace" in traced.stderr and not board.exists():
        pytest.skip(f"strace may not trace here: {traced.stderr.splitlines()[0]}")
    assert traced.returncode == 0, traced.stderr
    by_kernel = [name for name in map(_of_scope(scope), trace.read_text().splitlines()) if name in COUNTED]
    by_shim = [name for call in shim.Shim(board).calls() if (name := SAME.get(call.name, call.name)) in COUNTED]
    assert by_shim == by_kernel
    assert len(by_shim) > 40


def _of_scope(scope: Path) -> Callable[[str], str]:
    def name_of(line: str) -> str:
        found = re.match(r"(\w+)\(", line)
        return SAME.get(found[1], found[1]) if found and str(scope) in line else ""

    return name_of
