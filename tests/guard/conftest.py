"""The fixtures of the guard's tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from solorun import process

from .stage import Spawner


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own for every test: `status` shows what was started, also by the test before."""
    place = tmp_path_factory.mktemp("state") / "solorun"
    monkeypatch.setenv("SOLORUN_STATE", str(place))
    return place


@pytest.fixture(autouse=True)
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own runs may share an accelerator, with each other and with whoever trains on this machine."""
    monkeypatch.setenv("SOLORUN_SHARE_ACCELERATOR", "1")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other run is on this machine, as far as this process sees: whatever others train here, the answer is one."""
    monkeypatch.setattr(process, "census", tuple)


@pytest.fixture
def open_results(spawn: Spawner) -> Iterator[Path]:
    """A results directory that any user can reach."""
    top = Path(tempfile.mkdtemp(prefix="solorun-test-"))
    top.chmod(0o755)
    path = top / "mine"
    path.mkdir()
    yield path
    spawn.end()  # what still writes there would keep it from being removed
    shutil.rmtree(top)


@pytest.fixture
def fd(results: Path) -> Iterator[int]:
    """Descriptor of the results directory."""
    number = os.open(results, os.O_RDONLY | os.O_DIRECTORY)
    yield number
    os.close(number)
