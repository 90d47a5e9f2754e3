"""docs/procedure.md is true: its shell blocks work as typed, in order, and its table names tests that exist."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard.stage import Spawner
from tests.processes.conftest import ROOT
from tests.processes.sshd import Server, settings_file, short_place, why_no_server

HANDBOOK = (ROOT / "docs" / "procedure.md").read_text()
CLAUSES = [f"P{number}" for number in range(1, 27)]


def shell_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", HANDBOOK, re.MULTILINE | re.DOTALL)


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| (P\d+) \|.*\| ([^|]*) \|$", HANDBOOK, re.MULTILINE))


def test_every_clause_has_a_row() -> None:
    assert list(rows()) == CLAUSES


@pytest.mark.parametrize("clause", CLAUSES)
def test_the_tests_that_a_clause_names_exist(clause: str) -> None:
    named = re.findall(r"`([a-z_/]+\.py)::(\w+)`", rows()[clause])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_no_clause_is_left_for_later() -> None:
    assert "still to come" not in HANDBOOK


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, its environment and all."""
    root = tmp_path / "the project"
    root.mkdir()
    for name in ("kssm", "solorun"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    tools = root / ".venv" / "bin"
    tools.mkdir(parents=True)
    # What `make install` makes, but for this copy: the real ones lead to the checkout. A login over ssh brings no
    # variable along, and must not write into the registry of the person who tests.
    own = f"SOLORUN_STATE={_quoted(tmp_path / 'state')} PYTHONPATH={_quoted(root)}"
    python = f"{own} exec {_quoted(Path(sys.executable))}"
    for name, call in (("python3", f'{python} "$@"'), ("solorun", f'{python} -m solorun "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{call}\n")
        (tools / name).chmod(0o755)
    (tools / "activate").write_text(f"PATH={_quoted(tools)}:$PATH\nexport PATH\n")
    return root


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


@pytest.mark.skipif(bool(why_no_server()), reason=why_no_server())
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_every_shell_block_of_the_handbook_works_in_order(
    spawn: Spawner, project: Path, cache: Path, tmp_path: Path
) -> None:
    """bash, because the procedure's own lines need it nowhere but are read by people who have it."""
    script = "set -eu\n" + "".join(f"echo '== block {n}'\n{block}\n" for n, block in enumerate(shell_blocks(), 1))
    with short_place() as sockets:
        server = Server(_made(tmp_path / "ssh"), sockets)
        try:
            settings_file(project, "studio", command=[str(project / ".venv" / "bin" / "solorun")])
            (server.place / "ssh_config").write_text(
                (server.place / "ssh_config").read_text().replace("Host box", "Host studio box")
            )
            env = {
                **server.environment(), "KSSM_CACHE": str(cache), "OMP_NUM_THREADS": "1",
                "SOLORUN_STATE": str(tmp_path / "state"), "SOLORUN_TMUX_SOCKET": str(sockets / "tmux"),
            }  # fmt: skip
            child = spawn("bash", "-c", script, cwd=project, env=env)
            status = child.wait(600)
        finally:
            subprocess.run(["tmux", "-S", sockets / "tmux", "kill-server"], capture_output=True, check=False)
            server.stop()
    told = child.text()
    assert status == 0, told
    assert "Traceback" not in told
    for words in SAID:
        assert re.search(words, told), f"{words!r} not in:\n{told}"
    assert [*project.rglob("training.lock")] == []


SAID = (
    r"safe to start",
    r"completed",
    r"run \S+ holds it, PID \d+\n  it goes on when you log out",
    r"is held by PID \d+",
    r"waiting for PID \d+",
    r"called off: PID \d+",
    r"live:  tmux .*attach",
    r"\[1\] Running training processes",
    r"no run to stop",
    r"stopped",
    r"studio",
    r"stale",
    r"nothing to do",
)
"""What a person must have seen on the way, in any order."""


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_scenes_of_the_handbook_need_nothing_that_is_not_there() -> None:
    assert all(os.access(ROOT / name, os.R_OK) for name in ("docs/notices.md", "docs/settings.md"))
