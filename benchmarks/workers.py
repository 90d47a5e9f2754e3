"""Several programs side by side, one thread each, until there is nothing left to do or someone asks to stop."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.2
_ENDS_S = 10


@dataclass(frozen=True, slots=True)
class Task:
    """A program whose file, once it is there, is never made again.

    Args:
        name: for people, and of its log.
        words: of its command line, after `python3 -m`.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Worker:
    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    began: float


class Crew:
    """Runs tasks.

    Args:
        wanted: the tasks that can be done now and are not done, the most wanted first; asked anew each time.
        count: how many at a time.
        logs: folder for what they print.
        should_stop: asked several times a second.
        beat: told several times a second that the crew lives.
        say: takes a line for people.
    """

    def __init__(
        self,
        wanted: Callable[[], Iterator[Task]],
        count: int,
        logs: Path,
        should_stop: Callable[[], bool],
        beat: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._wanted, self._count, self._logs = wanted, count, logs
        self._should_stop, self._beat, self._say = should_stop, beat, say
        self._working: list[_Worker] = []
        self._failed: set[str] = set()

    def work(self) -> list[str]:
        """Work until nothing is wanted or a stop is asked for; names of the tasks that failed. None outlives it."""
        try:
            while not self._should_stop():
                self._hire()
                if not self._working:
                    break
                self._beat()
                time.sleep(_LOOK_S)
                for worker in [one for one in self._working if one.process.poll() is not None]:
                    self._dismiss(worker)
        finally:
            self._send_home()
        return sorted(self._failed)

    def _hire(self) -> None:
        if len(self._working) >= self._count:
            return
        taken = {worker.task.name for worker in self._working} | self._failed
        for task in self._wanted():
            if task.name in taken:
                continue
            self._working.append(self._begun(task))
            taken.add(task.name)
            if len(self._working) >= self._count:
                return

    def _begun(self, task: Task) -> _Worker:
        log = self._logs / f"{task.name}.log"
        # One thread each, or the two cores would be shared by four; a group of its own, since Ctrl-C is for us alone.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *task.words], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
        return _Worker(task, process, log, time.monotonic())

    def _dismiss(self, worker: _Worker) -> None:
        self._working.remove(worker)
        took = f"{time.monotonic() - worker.began:.0f} s"
        if worker.process.returncode == 0:
            self._say(f"{worker.task.name}: done in {took}")
            worker.log.unlink()
            return
        self._failed.add(worker.task.name)
        last = worker.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        self._say(f"{worker.task.name}: FAILED with status {worker.process.returncode}: {last[0]} ({worker.log})")

    def _send_home(self) -> None:
        for worker in self._working:
            worker.process.terminate()
        for worker in self._working:
            try:
                worker.process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._say(f"{worker.task.name}: left unfinished")
            worker.log.unlink(missing_ok=True)
        self._working.clear()
