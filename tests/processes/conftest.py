"""Real trainers as real processes: started, signalled by PID, always reaped."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solorun.progress import Progress, read_progress

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--size", "tiny", "--vocabulary", "bytes", "--batch-size", "2", "--seq-length", "64", "--eval-batches", "2")


def until(condition: Callable[[], object], deadline_s: float = 300.0, every_s: float = 0.01) -> None:
    """Wait for a condition, and fail when it does not come.

    The deadline costs nothing where it comes: a trainer loads torch, and a machine may be ten times as slow as this.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        late = time.monotonic() > deadline  # asked first: who was held up until then still looks once after it
        if condition():
            return
        assert not late, "what was waited for did not come"
        time.sleep(every_s)


def free_port() -> int:
    """A port of this machine that nobody has, and that no outgoing connection gets before it is listened at.

    Systems choose the ports of connections from 32768 on, or from 49152.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def progress_of(directory: Path) -> Progress | None:
    """The heartbeat of a directory, None before there is one."""
    try:
        fd = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return read_progress(fd)
    finally:
        os.close(fd)


class Trainers:
    """Starts trainers, each in a process group of its own, and leaves none behind."""

    def __init__(self, cache: Path) -> None:
        # The tests' trainers may share an accelerator, with each other and with whoever trains on this machine.
        sharing = {"SOLORUN_SHARE_ACCELERATOR": "1"}
        self.environment = {**os.environ, "KSSM_CACHE": str(cache), "OMP_NUM_THREADS": "1", **sharing}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, model: str = "v3", **options: object) -> subprocess.Popen[str]:
        """`kssm train MODEL WORDS...`"""
        command = [sys.executable, "-m", "kssm", "train", model, *words]
        return self.spawn(command, **options)

    def spawn(self, command: list[str] | str, **options: object) -> subprocess.Popen[str]:
        """Any command, reaped at the end of the test."""
        settings: dict[str, object] = {
            "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True,
            "env": self.environment, "cwd": ROOT, "start_new_session": True, **options,
        }  # fmt: skip
        process = subprocess.Popen(command, **settings)  # type: ignore[call-overload]
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill and reap what still lives."""
        for process in self.started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now: a zombie on a Mac
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def results(results: Path) -> Path:
    """An empty results directory, with a name that a careless shell line would tear apart."""
    return results.rename(results.with_name("it's mine"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files, made once."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def trainers(cache: Path) -> Iterator[Trainers]:
    """A starter of trainers."""
    made = Trainers(cache)
    yield made
    made.end()
