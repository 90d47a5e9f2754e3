"""`solorun` installs and runs without torch and numpy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import ROOT


def test_the_guard_installs_alone_in_a_clean_environment_and_runs_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLORUN_STATE", str(tmp_path / "state"))  # other tests have started runs in theirs
    python = tmp_path / "venv" / "bin" / "python3"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    constraints = str(ROOT / "constraints.txt")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("solorun", "kssm"):  # a copy: an install in place leaves a `build` whose files the next one takes too
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, str(source)], check=True, timeout=600)
    without = "import importlib.util as u; assert not any(map(u.find_spec, ('torch', 'numpy', 'tokenizers')))"
    subprocess.run([str(python), "-c", without], check=True, cwd=tmp_path)
    solorun = str(python.with_name("solorun"))
    told = subprocess.run([solorun, "status"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "no runs found" in told.stdout
    guarded = [solorun, "start", "results/a", "--", "echo", "guarded"]
    told = subprocess.run(guarded, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "guarded" in told.stdout
    told = subprocess.run([str(python.with_name("kssm")), "train", "v3"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 2
    assert "is not installed" in told.stderr
