"""What holds for every test, and what the guard's and the processes' tests begin with."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .guard.stage import Spawner, Terminal

# Machines are shared and noisy: a slow example is not a wrong one.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def own_state() -> Iterator[str]:
    """The registry of a person's real runs must not learn of tests."""
    with tempfile.TemporaryDirectory(prefix="solorun-state-", ignore_cleanup_errors=True) as place:
        os.environ["SOLORUN_STATE"] = place
        yield place


@pytest.fixture(autouse=True)
def plain_numbers() -> Iterator[None]:
    """A trainer's code that ran in this process has denormal numbers flushed to zero; no other test shall see that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    """A starter of children, all of which end with the test."""
    spawner = Spawner(tmp_path_factory.mktemp("children"))
    yield spawner
    spawner.end()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty results directory."""
    path = tmp_path / "results" / "mine"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def terminal(spawn: Spawner) -> Iterator[Callable[..., Terminal]]:
    """A starter of programs in the foreground of a real terminal."""
    opened: list[Terminal] = []

    def start(*argv: str | Path) -> Terminal:
        opened.append(Terminal([str(word) for word in argv], spawn.environment()))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
