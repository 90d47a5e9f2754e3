"""The checkpoints of a results directory: saved whole or not at all, verified when read, never another run's."""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from kssm import tensorfile
from kssm.atomicfile import clear_dead, lacks_room, reason, remedy, replacing, sync_directory
from kssm.errors import CheckpointError, NoRoom, TooLarge
from kssm.snapshot import Snapshot, SnapshotFacts
from kssm.tensorfile import Damaged

Report = Callable[[str], None]

BEST = "best_model.safetensors"
_OURS = re.compile(r"checkpoint_(0|[1-9]\d{0,17})\.safetensors")
_OTHERS = re.compile(r"checkpoint_\d+\.[A-Za-z0-9]+")
_PRIVATE = r"checkpoint_\d+\.safetensors|best_model\.safetensors"


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on the disk: its path, digest and step, and the seconds it took to write."""

    path: Path
    digest: str
    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified checkpoint: its path, digest and content."""

    path: Path
    digest: str
    snapshot: Snapshot


def checkpoint_path(directory: Path, step: int) -> Path:
    """The file of a step's checkpoint."""
    return directory / f"checkpoint_{step}.safetensors"


def save(
    directory: Path,
    snapshot: Snapshot,
    *,
    best: bool = False,
    report: Report = lambda _message: None,
    between: Callable[[], None] = lambda: None,
    read: Callable[[], None] = lambda: None,
) -> Saved:
    """Write a checkpoint, durable when this returns.

    Args:
        directory: the results directory.
        snapshot: what to write; its tensors must not change before `read` is called.
        best: write the best model instead of the step's checkpoint.
        report: told in a line when a torn or foreign file had to be moved aside.
        between: called before each block and before the fsync; what it raises ends the save, and nothing of it stays.
        read: called once every byte of the tensors is read, before the disk is waited for.

    Raises:
        NoRoom: disk or quota are full; as below.
        TooLarge: no file may be that large; as below.
        CheckpointError: the disk refused; nothing older is touched and nothing torn is left.
    """
    begin, step = time.perf_counter(), snapshot.facts.state.step
    path = directory / BEST if best else checkpoint_path(directory, step)
    try:
        with replacing(path) as file:
            digest = tensorfile.write_tensors(file, snapshot.tensors, snapshot.facts.as_json(), between)
            read()
            between()
            file.require_in_place()  # else the files that would be judged and moved were another directory's
            _move_aside(path, snapshot.facts.own, report)
    except OSError as error:
        kind = NoRoom if lacks_room(error) else TooLarge if error.errno == errno.EFBIG else CheckpointError
        raise kind(f"cannot save {path}: {reason(error)}", remedy(error)) from error
    return Saved(path, digest, step, time.perf_counter() - begin)


def load(path: Path) -> Loaded:
    """Read and verify a checkpoint; nothing in the file is executed.

    Raises:
        Damaged: torn, altered or foreign.
        CheckpointError: missing or unreadable.
    """
    tensors, facts, digest = tensorfile.read_tensors(path)
    return Loaded(path, digest, Snapshot(tensors, _parsed(facts, path)))


def read_facts(path: Path) -> SnapshotFacts:
    """What a checkpoint tells, from its header alone: cheap, and the tensors are not verified.

    Raises:
        Damaged: torn or foreign.
        CheckpointError: missing or unreadable.
    """
    return _parsed(tensorfile.read_facts(path), path)


def clear(directory: Path, report: Report) -> None:
    """Delete what dead writers left under private names, told in a line each."""
    for path in clear_dead(directory, _PRIVATE):
        report(f"cleared {path.name}, left by a save that was killed")


def newest_valid(directory: Path, report: Report) -> Loaded | None:
    """The newest checkpoint that is whole; what dead writers left under private names is cleared.

    Args:
        directory: the results directory.
        report: told in a line each file that was passed over, and why.

    Returns:
        None where there is none.

    Raises:
        CheckpointError: one cannot be read although it may be sound; an older one would silently lose its steps.
    """
    clear(directory, report)
    for name in _listed(directory, _OTHERS):
        if not _OURS.fullmatch(name):
            report(f"passed over {name}: another program's checkpoint")
    for step, path in _newest_first(directory):
        try:
            loaded = load(path)
        except Damaged as error:
            report(f"passed over {path.name}: {error}")
            continue
        if loaded.snapshot.facts.state.step == step:
            return loaded
        report(f"passed over {path.name}: it is of step {loaded.snapshot.facts.state.step}")
    return None


def prune(directory: Path, keep: int, lineage: Collection[str], newest: int) -> list[Path]:
    """Delete all but the newest checkpoints of a run; the best model stays.

    Args:
        directory: the results directory.
        keep: how many stay, 1 or more.
        lineage: the run ids whose checkpoints may go; all other files stay and do not count.
        newest: step of the checkpoint that was just saved. Files of later steps stay and do not count: they were
            passed over as damaged when the run resumed, and must not push sound ones out.

    Returns:
        What was deleted.

    Raises:
        CheckpointError: the disk refused.
    """
    own = [path for step, path in _newest_first(directory) if step <= newest and _run_of(path) in lineage]
    surplus = own[max(keep, 1) :]
    try:
        for path in surplus:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot delete an old checkpoint in {directory}: {reason(error)}", remedy(error)
        ) from error
    return surplus


def _parsed(facts: tensorfile.Facts, path: Path) -> SnapshotFacts:
    try:
        return SnapshotFacts.from_json(facts)
    except ValueError as error:
        raise Damaged(path, f"its facts are wrong: {error}") from error


def _run_of(path: Path) -> str | None:
    try:
        return read_facts(path).run_id
    except CheckpointError:
        return None


def _newest_first(directory: Path) -> Iterator[tuple[int, Path]]:
    steps = sorted((int(name.split("_")[1].split(".")[0]) for name in _listed(directory, _OURS)), reverse=True)
    return ((step, checkpoint_path(directory, step)) for step in steps)


def _listed(directory: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if pattern.fullmatch(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot look into {directory}: {reason(error)}", remedy(error)) from error


def _move_aside(path: Path, own: Collection[str], report: Report) -> None:
    """Free a name that a torn file or another run's checkpoint bears, without losing that file."""
    try:
        run = read_facts(path).run_id
    except Damaged:
        labels = (f"torn-{number}" for number in itertools.count(1))
    except CheckpointError:
        if not os.path.lexists(path):
            return
        raise
    else:
        if run in own:
            return
        # The id comes out of a file: without this a crafted one could name a path elsewhere.
        label = f"foreign-{re.sub(r'[^A-Za-z0-9_-]', '-', run)[:64]}"
        labels = (label if number == 1 else f"{label}-{number}" for number in itertools.count(1))
    aside = next(
        other for other in (path.with_name(f"{path.name}.{label}") for label in labels) if not os.path.lexists(other)
    )
    path.rename(aside)
    sync_directory(path.parent)
    report(f"moved {path.name} aside as {aside.name}: it is not this run's")
