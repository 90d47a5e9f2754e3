"""How a run saves: beside the training, one write at a time, told to guard and people once it is durable.

Guard and report are spoken to from the training's own thread alone; the writer's thread knows neither.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from kssm.atomicfile import largest_file, remedy_of_size
from kssm.checkpoint import Saved
from kssm.errors import CheckpointError, NoRoom, Stopped, TooLarge
from kssm.pause import Clocked, Pause, State, Task, megabytes
from kssm.place import Place
from kssm.report import Report
from kssm.snapshot import Snapshot, TrainState
from kssm.writer import Writing, within_reach

_DAY_S = 86400.0


class Witness(Clocked, Protocol):
    """What saving needs from whoever guards the run."""

    @property
    def directory(self) -> Path:
        """Where the results directory is now."""


@dataclass(slots=True)
class _Pending:
    """A save that is not told of yet; `stood_s` is how long the training has stood still for it."""

    writing: Writing[Saved]
    snapshot: Snapshot
    best: bool
    living: bool
    failed: Callable[[], None]
    said: list[str]
    stood_s: float = 0.0
    is_fresh: bool = True
    """Whether the tensors still hold what they held when it began."""

    @property
    def step(self) -> int:
        return self.snapshot.facts.state.step


class Saves:
    """The saves of one run. Left by an error it sees the save under way through; left at once it gives it up.

    A disk that is full pauses the run: the reserve makes room for the state of now, and nothing is trained on before
    there is room for the next one.

    Args:
        guard: told of phase and events. Its phase is "saving" from the beginning of a write until it is told of,
            beside the training too: a stop waits for that.
        report: lines for people.
        keep: how many of the newest checkpoints stay.
        now: the state as it is in memory, between two updates; `now(True)` as it was before the evaluation whose best
            model is not on the disk, so that who resumes it evaluates again.
        saved: the state of the newest checkpoint so far.
        disk_wait_s: how long to wait for room on a full disk.
        hear: called now and then while it is waited for, for what must be noticed beside signals.

    Attributes:
        saved: the state of the newest checkpoint that is durable; None without one.
        owes_best: a stop was heard while a best model waited for room: `saved` is the state before its evaluation.
    """

    def __init__(
        self,
        guard: Witness,
        report: Report,
        keep: int,
        now: Callable[[bool], Snapshot],
        saved: TrainState | None = None,
        disk_wait_s: float = _DAY_S,
        hear: Callable[[], None] = lambda: None,
    ) -> None:
        self.saved = saved
        self.owes_best = False
        self._guard = guard
        self._report = report
        self._now = now
        self._pause = Pause(guard, report, disk_wait_s, hear)
        self._pending: _Pending | None = None
        self._phase = contextlib.ExitStack()
        self._place = Place(keep)

    def __enter__(self) -> Self:
        self._say_all(self._place.open(self._guard.directory))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            try:
                self._end()
            except CheckpointError as refused:
                self._warn(refused, "this save is lost")
        else:
            self._leave()
        self._place.close()

    def require_size(self) -> None:
        """Raise TooLarge where no file may be as large as a checkpoint of now: known before anything is trained."""
        limit = largest_file()
        if limit is not None and (needed := _tensor_bytes(self._now(False))) > limit:
            raise TooLarge(
                f"cannot save in {self._guard.directory}: a checkpoint takes {megabytes(needed)} and more, "
                f"and a file may take {megabytes(limit)}",
                remedy_of_size(),
            )

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way or not yet told of."""
        return self._pending is not None

    def begin(self, snapshot: Snapshot, *, best: bool = False, failed: Callable[[], None] = lambda: None) -> None:
        """Begin to write a checkpoint; its tensors may change only after `release`.

        Args:
            snapshot: of now.
            best: write the best model instead of the step's checkpoint.
            failed: called when it turns out that the disk refused, and no more is tried.

        Raises:
            Stopped, NoRoom: see `settle`, for the save before.
        """
        self.settle()
        began, directory = time.perf_counter(), self._guard.directory
        with contextlib.ExitStack() as phase:
            phase.enter_context(self._guard.phase("saving"))
            if not best:
                self._guard.event("saving", step=snapshot.facts.state.step)
            self._pending = self._begin(directory, snapshot, best, failed)
            self._phase = phase.pop_all()
        self._pending.stood_s = time.perf_counter() - began
        self._report.resume_clock()

    def _begin(self, directory: Path, snapshot: Snapshot, best: bool, failed: Callable[[], None]) -> _Pending:
        tensors, living = within_reach(snapshot.tensors)
        reached, said = Snapshot(tensors, snapshot.facts), list[str]()

        def work(between: Callable[[], None], read: Callable[[], None]) -> Saved:
            saved = self._place.write(directory, reached, best, said, between, read)
            if not best:  # beside the training, since writing zeros takes time too
                self._place.keep_reserve(saved.path, between, said)
            return saved

        return _Pending(Writing(work), reached, best, living, failed, said)

    def release(self) -> None:
        """Return once the tensors may change: every byte of them is read; the disk is not waited for.

        Raises:
            Stopped, NoRoom: see `settle`; the tensors must not change then.
        """
        pending = self._pending
        if pending is None:
            return
        if pending.living:
            began = time.perf_counter()
            pending.writing.wait_read()
            pending.stood_s += time.perf_counter() - began
        self.look()
        pending.is_fresh = not pending.living

    def look(self) -> None:
        """Tell of a save that has ended; wait for nothing but room.

        Raises:
            Stopped, NoRoom: see `settle`.
        """
        if self._pending is not None and self._pending.writing.is_over:
            self.settle()

    def settle(self, *, last: bool = False) -> None:
        """Wait for the save under way, if any, and tell of it; called between two updates.

        A faulty disk costs this checkpoint, not the run: older ones stand, and the next is tried. A full one pauses
        the run, with the state of now saved in the reserve's room. A limit on the size of a file ends it: the next
        checkpoint would be refused as well.

        Args:
            last: nothing will be trained on, so that only what is not saved yet waits for room.

        Raises:
            Stopped: a stop was asked for while it waited for room; the state of now is saved.
            NoRoom: no room came within the limit.
            TooLarge: no file may be as large as a checkpoint is.
        """
        self._settle(last=last, may_fail=True)

    def finish(self) -> None:
        """Wait for the last save of a run, if any, and tell of it.

        Raises:
            Stopped: see `settle`.
            CheckpointError: the disk refused.
        """
        self._settle(last=True, may_fail=False)

    def _settle(self, *, last: bool, may_fail: bool) -> None:
        pending = self._pending
        if pending is None:
            return
        try:
            self._end()
        except NoRoom as error:
            self._make_up(pending, error, last=last)
        except CheckpointError as error:
            if not may_fail or isinstance(error, TooLarge):
                raise
            self._give_up(pending.step, error)

    def _give_up(self, step: int, error: CheckpointError) -> None:
        self._guard.event("save failed", step=step, what=error.what)
        self._warn(error, "training goes on")

    def _warn(self, error: CheckpointError, so: str) -> None:
        self._report.say(f"WARNING: {error.what}; {so} ({error.next_step})")

    def _end(self) -> None:
        pending = self._pending
        if pending is None:
            return
        began = time.perf_counter()
        pending.writing.wait()  # an interrupted wait leaves the save pending
        pending.stood_s += time.perf_counter() - began
        self._pending = None
        with self._phase:
            try:
                saved = pending.writing.result()
            except NoRoom:
                raise  # not given up yet
            except CheckpointError:
                pending.failed()
                raise
            finally:
                self._say_all(pending.said)
            self._tell(saved, pending.snapshot, pending.best, pending.stood_s)

    def _say_all(self, lines: list[str]) -> None:
        for line in lines:
            self._report.say(line)

    def _tell(self, saved: Saved, snapshot: Snapshot, best: bool, stood_s: float) -> None:
        if not best:
            self.saved = snapshot.facts.state
            self._guard.event("saved", step=saved.step, path=saved.path.name, digest=saved.digest)
        self._report.say(
            f"saved {saved.path.name} at step {saved.step} in {saved.seconds:.2f} s; "
            f"training stood still for {stood_s:.2f} s"
        )

    def _make_up(self, failed: _Pending, error: NoRoom, *, last: bool) -> None:
        """Save the state of now in the reserve's room, then what failed, and wait for room to go on."""
        try:
            self._place.make_room(self._guard.directory)  # first: the journal needs a little of that room too
        except CheckpointError:
            failed.failed()
            raise
        self._guard.event("save failed", step=failed.step, what=error.what)
        owed = [failed] if failed.best and failed.is_fresh else []
        if failed.best and not owed:  # first: no checkpoint may tell of a best model that is not on the disk
            failed.failed()
        now = self._now(bool(owed))
        needs, state = _bytes_of(now), State(now.facts.state.step, lambda: self.saved == now.facts.state)
        tasks = [Task(partial(self._try, now, last=last), needs)]
        tasks += [Task(partial(self._try, best.snapshot, best, last=last), _bytes_of(best.snapshot)) for best in owed]
        if not last:
            # Where zeros must be written that takes minutes, in which a stop is heard too.
            look = partial(self._pause.look, state)
            tasks.append(Task(partial(self._place.has_room, needs, look), self._place.wanted(needs)))
        try:
            self._pause.through(tasks, lambda: self._place.room, state, error)
        except BaseException as left:
            failed.failed()
            self.owes_best = bool(owed) and isinstance(left, Stopped)
            raise

    def _try(self, snapshot: Snapshot, best: _Pending | None = None, *, last: bool) -> bool:
        """Write a checkpoint, or a best model that failed, here and now; False where there is no room."""
        step, said = snapshot.facts.state.step, list[str]()
        if not best and snapshot.facts.state == self.saved:
            return True
        with self._guard.phase("saving"):
            if not best:
                self._guard.event("saving", step=step)
            try:
                saved = self._place.write(self._guard.directory, snapshot, bool(best), said)
            except NoRoom:
                return False
            except CheckpointError as error:  # as of any faulty disk
                if last or isinstance(error, TooLarge):
                    raise
                if best:
                    best.failed()
                self._give_up(step, error)
                return True
            finally:
                self._say_all(said)
            self._tell(saved, snapshot, bool(best), saved.seconds)
        return True

    def _leave(self) -> None:
        """Give up what is not yet on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._phase:
                pending.writing.give_up()


def _bytes_of(snapshot: Snapshot) -> int:
    """About what a snapshot takes on the disk."""
    return _tensor_bytes(snapshot) + (1 << 16)


def _tensor_bytes(snapshot: Snapshot) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
