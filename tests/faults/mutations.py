"""What can become of a file: by a sick disk, by a hand, by somebody who means harm. All pure.

`bytewise` knows nothing of a format; `misfits` puts into each place of a JSON document what does not belong there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Mutation = tuple[str, bytes]
"""What was done, in words, and what became of the file."""

GARBAGE = (
    b"", b"\0", b"\n", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"null", b"true", b"[]", b"{}", b'""',
    b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 5_000, b'{"schema": 1}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
    b"\x80\x04cposix\nsystem\n(S'false'\ntR.", b"PK\x03\x04" + b"\0" * 64, b"SQLite format 3\0" + b"\0" * 200,
    b'{"run_id": "\\ud800"}', b"\x1b]0;x\x07\x1b[2J\n",
)  # fmt: skip
"""Whole files that are none."""

MISFITS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63), 10**40, 10**400, float("nan"), float("inf"),
    float("-inf"), 1e300, -1e300, 253402300800, "", "x", "\0", "a\nb", "../../etc/passwd", "/dev/zero", "\ud800",
    "\x1b[31m\x1b]0;x\x07", "\u202e\u200b", "9" * 400, "x" * 70_000, "NaN", [], [None], [1, "x"], [[]], {},
    {"here": {}},
    {"__reduce__": ["os.system", ["false"]]}, {"py/object": "os.system"},
)  # fmt: skip
"""Values of a wrong kind, out of every range, or made to hurt whoever shows or uses them."""


def bytewise(data: bytes, chance: random.Random, count: int, others: tuple[bytes, ...] = ()) -> Iterator[Mutation]:
    """Random damage, each kind of it in turn.

    Args:
        data: the sound file.
        chance: where the damage falls.
        count: how many.
        others: sound files of the same kind, whose parts are mixed in.
    """
    kinds = (_bits, _bytes, _cut, _longer, _zeroed, _doubled, _dropped, _mixed)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield kind.__name__.strip("_"), kind(data, chance, others)


def cuts(data: bytes) -> Iterator[Mutation]:
    """The file cut at each length."""
    return ((f"cut at {length}", data[:length]) for length in range(len(data)))


def flips(data: bytes) -> Iterator[Mutation]:
    """One bit flipped in each byte, another one from byte to byte."""
    for place, byte in enumerate(data):
        yield f"flip at {place}", data[:place] + bytes((byte ^ (1 << place % 8),)) + data[place + 1 :]


def misfits(document: Any, dumps: Callable[[Any], bytes] | None = None) -> Iterator[Mutation]:
    """A JSON document with each value in it replaced by each misfit, each key taken out, and each key twice.

    Args:
        document: sound.
        dumps: how it becomes a file.
    """
    written = dumps or (lambda value: json.dumps(value).encode("utf-8", "surrogatepass") + b"\n")
    for path in _places(document):
        for value in MISFITS:
            yield f"{path} is {str(value)[:30]!r}", written(_replaced(document, path, value))
        if isinstance(path[-1], str):
            yield f"{path} is missing", written(_without(document, path))
            once = json.dumps(path[-1]).encode()
            sound = written(document)
            yield f"{path} stands twice", sound.replace(once + b":", once + b": null, " + once + b":", 1)


def _places(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*above, key)
        yield from _places(inner, (*above, key))


def _replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = _replaced(value[path[0]], path[1:], new)
    return changed


def _without(value: Any, path: tuple[str | int, ...]) -> Any:
    changed = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = _without(value[path[0]], path[1:])
    return changed


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    first = chance.randrange(len(data) + 1)
    return first, min(len(data), first + chance.choice((1, 2, 4, 16, 64, 512, 4096)))


def _bits(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8)) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _bytes(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    first, end = _span(data, chance)
    return data[:first] + chance.randbytes(end - first) + data[end:]


def _cut(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _longer(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    return data + chance.choice((b"\0", b"\n", b" ", data, chance.randbytes(64), b"\0" * 4096))


def _zeroed(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    first, end = _span(data, chance)
    return data[:first] + bytes(end - first) + data[end:]


def _doubled(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    first, end = _span(data, chance)
    return data[:end] + data[first:end] + data[end:]


def _dropped(data: bytes, chance: random.Random, _others: tuple[bytes, ...]) -> bytes:
    first, end = _span(data, chance)
    return data[:first] + data[end:]


def _mixed(data: bytes, chance: random.Random, others: tuple[bytes, ...]) -> bytes:
    """A block of another sound file in the place of ours: two writers, or blocks that a disk has confused."""
    other = chance.choice(others) if others else data[::-1]
    first, end = _span(data, chance)
    return data[:first] + other[first:end] + data[end:]
