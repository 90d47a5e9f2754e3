"""Where a run saves: checkpoints written and pruned in its directory, and the room that is kept for the next one.

Speaks to nobody, so that the writer's thread may use it: lines for people are handed back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from kssm import checkpoint
from kssm.atomicfile import reason, remedy
from kssm.checkpoint import Saved
from kssm.errors import CheckpointError
from kssm.pause import megabytes
from kssm.reserve import MARGIN, Reserve
from kssm.snapshot import Snapshot


class Place:
    """The place of one run.

    Args:
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._reserve: Reserve | None = None
        self._had_reserve = self._told_of_reserve = False

    def open(self, directory: Path) -> list[str]:
        """Begin to keep a reserve there; lines for people."""
        try:
            self._reserve = Reserve(directory)
        except OSError as error:  # a faulty disk costs the reserve, not the run
            self._told_of_reserve = True
            return [f"WARNING: no reserve on the disk: {reason(error)} ({remedy(error)})"]
        return []

    def close(self) -> None:
        """Take the reserve away."""
        if self._reserve is not None:
            self._reserve.close()
        self._reserve = None

    def write(
        self,
        directory: Path,
        snapshot: Snapshot,
        best: bool,
        said: list[str],
        between: Callable[[], None] = lambda: None,
        read: Callable[[], None] = lambda: None,
    ) -> Saved:
        """Write a checkpoint, and delete what it makes one too many.

        Args:
            directory: where it is now.
            snapshot: what is written.
            best: write the best model instead of the step's checkpoint.
            said: lines for people are added to it.
            between: called before each piece; what it raises gives the write up.
            read: called once the tensors are needed no more.

        Raises:
            NoRoom: disk or quota are full.
            CheckpointError: the disk refused, or memory is full.
        """
        facts = snapshot.facts
        try:
            saved = checkpoint.save(directory, snapshot, best=best, report=said.append, between=between, read=read)
        except MemoryError as error:  # told within a step it would look like the step's own
            raise CheckpointError(f"cannot save in {directory}: out of memory", "stop other programs") from error
        if not best:  # here, since deleting half a gigabyte takes time too
            said.extend(_prune(directory, self._keep, facts.lineage, facts.state.step))
        return saved

    def keep_reserve(self, path: Path, between: Callable[[], None], said: list[str]) -> None:
        """Have room for the next checkpoint, as large as the one at the path; where there is none that is said once."""
        if self._reserve is None:
            return
        size = 0
        try:
            size = path.stat().st_size
            self._reserve.keep(size, between=between)
            self._had_reserve = True
        except OSError as error:
            if not self._told_of_reserve:
                said.append(
                    f"WARNING: no reserve of {megabytes(size + MARGIN)} on the disk ({error}): should it fill up, "
                    "the newest steps wait in memory alone until there is room"
                )
            self._told_of_reserve = True

    @property
    def room(self) -> int:
        """Bytes that are free, the reserve not counted; 0 where that cannot be told."""
        return self._reserve.room if self._reserve else 0

    def make_room(self, directory: Path) -> None:
        """Give up the reserve, if there is one.

        Raises:
            CheckpointError: the directory cannot even be opened.
        """
        try:
            self._reserve = self._reserve or Reserve(directory)
        except OSError as error:
            raise CheckpointError(f"cannot save in {directory}: {reason(error)}", remedy(error)) from error
        self._had_reserve |= self._reserve.free()

    def wanted(self, size: int) -> int:
        """Bytes that must be free for the next checkpoint of that size, and for a reserve where there was one."""
        return 2 * size + MARGIN if self._had_reserve else size

    def has_room(self, size: int, between: Callable[[], None]) -> bool:
        """Whether there is room for the reserve again, and for the next checkpoint; without one before, for that.

        Args:
            size: bytes of a checkpoint.
            between: called before each block that has to be written to find out; what it raises is let pass.
        """
        if self._reserve is None or not self._had_reserve:
            return self.room >= size
        try:
            self._reserve.keep(size, beside=size, between=between)
        except OSError as error:
            # The reserve and what is beside it are tried in one file, which may be larger than a file may be.
            return error.errno == errno.EFBIG and self.room >= self.wanted(size)
        return True


def _prune(directory: Path, keep: int, lineage: Sequence[str], step: int) -> list[str]:
    try:
        checkpoint.prune(directory, keep, lineage, step)
    except CheckpointError as error:  # what should have gone is still there: nothing is lost
        return [f"WARNING: {error.what} ({error.next_step})"]
    return []
