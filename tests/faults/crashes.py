"""What a disk may hold after the power was cut: a model of the weakest file system that keeps what it promises.

Bytes of a file are durable by an fsync of that file alone, names by an fsync of the directory alone. Of what was not
synced any part may be there: writes are dropped, put in another order, and torn between blocks of 512 bytes; a file may
have its new length without its new bytes; names come and go in any order. A rename is one step, as POSIX says.
Every journalling file system leaves a part of these states; which one differs from system to system.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.faults.recorded import Operation, Put, Recording, Resize, Sync, SyncNames, Take, Write

BLOCK = 512
_EVERY_SUBSET = 5
_FORMS = ("all", "none", "lengths", "hole", "some")
"""What is there of the bytes that were not synced: all, none, the length alone, all but one write, some blocks."""

Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Left:
    """What is certain at a moment, and what is not."""

    names: dict[str, int]
    naming: list[Put | Take]
    contents: dict[int, bytes]
    writing: dict[int, list[Write | Resize]]


def states(recording: Recording, until: int, chance: random.Random, most: int) -> Iterator[Files]:
    """What the directory may hold when the power is cut after so many operations; every kind, at most so many.

    Args:
        recording: of the program.
        until: operations that had returned.
        chance: chooses among too many.
        most: states, each by names and bytes; some may be the same.
    """
    left = _left(recording, recording.operations[:until])
    for number, kept in enumerate(_subsets(left.naming, chance, most)):
        names = _named(left.names, kept)
        # The names of now with the bytes of before is what a missing fsync shows: all forms where it costs little.
        forms = _FORMS if len(_FORMS) * (number + 1) <= most else (chance.choice(_FORMS),)
        for form in forms:
            yield {name: _content(left, file, form, chance) for name, file in names.items()}
        if number + 1 >= most:
            return


def _left(recording: Recording, done: Sequence[Operation]) -> _Left:
    names, contents = dict(recording.names), dict(recording.contents)
    naming: list[Put | Take] = []
    writing: dict[int, list[Write | Resize]] = {}
    for operation in done:
        match operation:
            case Put() | Take():
                naming.append(operation)
            case Write(file) | Resize(file):
                writing.setdefault(file, []).append(operation)
            case Sync(file):
                data = bytearray(contents.get(file, b""))
                for change in writing.pop(file, []):
                    _apply(data, change)
                contents[file] = bytes(data)
            case SyncNames():
                names, naming = _named(names, naming), []
    return _Left(names, naming, contents, writing)


def _named(names: dict[str, int], changes: Sequence[Put | Take]) -> dict[str, int]:
    found = dict(names)
    for change in changes:
        if isinstance(change, Take):
            found.pop(change.name, None)
        else:
            found.pop(change.old, None)
            found[change.name] = change.file
    return found


def _subsets(changes: list[Put | Take], chance: random.Random, most: int) -> Iterator[list[Put | Take]]:
    """Which changes of names are there: all subsets of few; of many every beginning, every end, and some others."""
    if len(changes) <= _EVERY_SUBSET:
        for mask in reversed(range(1 << len(changes))):
            yield [change for bit, change in enumerate(changes) if mask >> bit & 1]
        return
    yield changes
    yield []
    for cut in range(1, len(changes)):
        yield changes[:cut]
        yield changes[cut:]
    for _ in range(most):
        yield [change for change in changes if chance.random() < 0.5]


def _content(left: _Left, file: int, form: str, chance: random.Random) -> bytes:
    data = bytearray(left.contents.get(file, b""))
    changes = left.writing.get(file, [])
    if form == "none" or not changes:
        return bytes(data)
    hole = chance.choice(changes) if form == "hole" else None
    for change in changes:
        if form == "some":
            _apply_some(data, change, chance)
        elif isinstance(change, Write) and (form == "lengths" or change is hole):
            _lengthen(data, change)
        else:
            _apply(data, change)
    return bytes(data)


def _apply_some(data: bytearray, change: Write | Resize, chance: random.Random) -> None:
    """A part of a change: nothing of it, its length, or some of its blocks."""
    if isinstance(change, Resize) or chance.random() < 0.3:
        if chance.random() < 0.5:
            _apply(data, change) if isinstance(change, Resize) else _lengthen(data, change)
        return
    for first in range(0, len(change.data), BLOCK):
        if chance.random() < 0.7:
            _apply(data, Write(change.file, change.at + first, change.data[first : first + BLOCK]))


def _lengthen(data: bytearray, change: Write) -> None:
    data.extend(bytes(max(0, change.at + len(change.data) - len(data))))


def _apply(data: bytearray, change: Write | Resize) -> None:
    if isinstance(change, Resize):
        del data[change.size :]
        data.extend(bytes(change.size - len(data)))
        return
    data.extend(bytes(max(0, change.at - len(data))))
    data[change.at : change.at + len(change.data)] = change.data
