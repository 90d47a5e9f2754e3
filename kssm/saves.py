"""How a run saves: beside the training, one write at a time, told to guard and people once it is durable.

Guard and report are spoken to from the training's own thread alone; the writer's thread knows neither.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kssm import checkpoint
from kssm.checkpoint import Saved
from kssm.errors import CheckpointError
from kssm.report import Report
from kssm.snapshot import Snapshot
from kssm.writer import Writing, within_reach


class Witness(Protocol):
    """What saving needs from whoever guards the run."""

    @property
    def directory(self) -> Path:
        """Where the results directory is now."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Be in another phase for a while."""

    def event(self, name: str, **facts: Any) -> None:
        """An event of the journal."""


@dataclass(slots=True)
class _Pending:
    """A save that is not told of yet; `stood_s` is how long the training has stood still for it."""

    writing: Writing[Saved]
    step: int
    best: bool
    living: bool
    failed: Callable[[], None]
    said: list[str]
    stood_s: float


class Saves:
    """The saves of one run. Left by an error it sees the save under way through; left at once it gives it up.

    Args:
        guard: told of phase and events. Its phase is "saving" from the beginning of a write until it is told of,
            beside the training too: a stop waits for that.
        report: lines for people.
        keep: how many of the newest checkpoints stay.
        saved_step: step of the newest checkpoint so far.

    Attributes:
        saved_step: step of the newest checkpoint that is durable.
    """

    def __init__(self, guard: Witness, report: Report, keep: int, saved_step: int = 0) -> None:
        self.saved_step = saved_step
        self._guard = guard
        self._report = report
        self._keep = keep
        self._pending: _Pending | None = None
        self._phase = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.settle()
        else:
            self._leave()

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way or not yet told of."""
        return self._pending is not None

    def begin(self, snapshot: Snapshot, *, best: bool = False, failed: Callable[[], None] = lambda: None) -> None:
        """Begin to write a checkpoint; its tensors may change only after `release`.

        Args:
            snapshot: of now.
            best: write the best model instead of the step's checkpoint.
            failed: called when it turns out that the disk refused.
        """
        self.settle()
        began, step, directory = time.perf_counter(), snapshot.facts.state.step, self._guard.directory
        with contextlib.ExitStack() as phase:
            phase.enter_context(self._guard.phase("saving"))
            if not best:
                self._guard.event("saving", step=step)
            self._pending = self._begin(directory, snapshot, best, failed)
            self._phase = phase.pop_all()
        self._pending.stood_s = time.perf_counter() - began
        self._report.resume_clock()

    def _begin(self, directory: Path, snapshot: Snapshot, best: bool, failed: Callable[[], None]) -> _Pending:
        tensors, living = within_reach(snapshot.tensors)
        facts, keep, said = snapshot.facts, self._keep, list[str]()

        def work(between: Callable[[], None], read: Callable[[], None]) -> Saved:
            try:
                saved = checkpoint.save(
                    directory, Snapshot(tensors, facts), best=best, report=said.append, between=between, read=read
                )
            except MemoryError as error:  # told within a step it would look like the step's own
                raise CheckpointError(f"cannot save in {directory}: out of memory", "stop other programs") from error
            if not best:  # here, since deleting half a gigabyte takes time too
                said.extend(_prune(directory, keep, facts.lineage, facts.state.step))
            return saved

        return _Pending(Writing(work), facts.state.step, best, living, failed, said, 0.0)

    def release(self) -> None:
        """Return once the tensors may change: every byte of them is read; the disk is not waited for."""
        pending = self._pending
        if pending is None:
            return
        if pending.living:
            began = time.perf_counter()
            pending.writing.wait_read()
            pending.stood_s += time.perf_counter() - began
        self.look()

    def look(self) -> None:
        """Tell of a save that has ended; wait for nothing."""
        if self._pending is not None and self._pending.writing.is_over:
            self.settle()

    def settle(self) -> None:
        """Wait for the save under way, if any, and tell of it.

        A disk that refused costs this checkpoint, not the run: older ones stand, and the next is tried.
        """
        pending = self._pending
        if pending is None:
            return
        try:
            self.finish()
        except CheckpointError as error:
            self._guard.event("save failed", step=pending.step, what=error.what)
            self._report.say(f"WARNING: {error.what}; training goes on ({error.next_step})")

    def finish(self) -> None:
        """Wait for the save under way, if any, and tell of it.

        Raises:
            CheckpointError: the disk refused.
        """
        pending = self._pending
        if pending is None:
            return
        began = time.perf_counter()
        pending.writing.wait()  # an interrupted wait leaves the save pending
        pending.stood_s += time.perf_counter() - began
        self._pending = None
        with self._phase:
            self._tell(pending)

    def _tell(self, pending: _Pending) -> None:
        try:
            saved = pending.writing.result()
        except CheckpointError:
            pending.failed()
            raise
        finally:
            for line in pending.said:
                self._report.say(line)
        if not pending.best:
            self.saved_step = saved.step
            self._guard.event("saved", step=saved.step, path=saved.path.name, digest=saved.digest)
        self._report.say(
            f"saved {saved.path.name} at step {saved.step} in {saved.seconds:.2f} s; "
            f"training stood still for {pending.stood_s:.2f} s"
        )

    def _leave(self) -> None:
        """Give up what is not yet on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._phase:
                pending.writing.give_up()


def _prune(directory: Path, keep: int, lineage: Sequence[str], step: int) -> list[str]:
    try:
        checkpoint.prune(directory, keep, lineage, step)
    except CheckpointError as error:  # what should have gone is still there: nothing is lost
        return [f"WARNING: {error.what} ({error.next_step})"]
    return []
