"""Tensors and facts in one file of the safetensors format, with a digest over every byte.

    8 bytes      length of the header, little-endian
    header       JSON: "__metadata__" (strings: digest, facts), then dtype, shape and place of each tensor
    data         the tensors, side by side

The digest is sha256 over header and data, the digest's own place read as zeros. A reader checks every length before
it allocates, and runs nothing that the file holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kssm.atomicfile import PrivateFile, reason, remedy
from kssm.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_OPENING = b'{"__metadata__":{"digest":"'
_ZEROS = b"0" * 64
_DIGEST_AT = 8 + len(_OPENING)
_MOST_HEADER = 1 << 26
_MOST_DIMENSIONS = 64
_WORDS = 200  # letters of what a damaged file says that are told
# Small enough that what was hashed is still in the processor's cache when it is written.
_BLOCK = 1 << 21

Facts = dict[str, Any]


class Damaged(CheckpointError):
    """A file that is not, or no longer, what our writer made."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged or not a checkpoint: {what}", "use another checkpoint")


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Header:
    raw: bytes
    digest: str
    facts: Facts
    places: list[_Place]


def write_tensors(
    file: PrivateFile, tensors: Mapping[str, Tensor], facts: Facts, between: Callable[[], None] = lambda: None
) -> str:
    """Fill a new file.

    Args:
        file: empty.
        tensors: by name, on any device; one at a time is brought to the CPU.
        facts: JSON values, no NaN and no infinity.
        between: called before each block; what it raises ends the write.

    Returns:
        The digest, 64 hexadecimal digits.

    Raises:
        OSError: the disk refused.
        CheckpointError: a tensor of a type, or a fact of a value, that the format has no word for.
    """
    # Wide types first keeps every tensor aligned, whatever the readers of other libraries want.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _encode_header({name: tensors[name] for name in order}, facts)
    hasher = hashlib.sha256()
    for block in (len(header).to_bytes(8, "little"), header):
        hasher.update(block)
        file.write(block)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
        for first in range(0, len(data), _BLOCK):
            between()
            hasher.update(data[first : first + _BLOCK])
            file.write(data[first : first + _BLOCK])
    file.write_at(_DIGEST_AT, hasher.hexdigest().encode())
    return hasher.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Facts, str]:
    """The tensors on the CPU, the facts and the digest of a file.

    Raises:
        Damaged: any byte is not as it was written.
        CheckpointError: the file cannot be read, or memory does not suffice.
    """
    try:
        with path.open("rb") as stream:
            header = _read_header(stream, path)
            hasher = hashlib.sha256(len(header.raw).to_bytes(8, "little") + header.raw)
            tensors = {place.name: _read_tensor(stream, place, hasher, path) for place in header.places}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}", remedy(error)) from error
    if hasher.hexdigest() != header.digest:
        raise Damaged(path, "its bytes do not match its digest")
    return tensors, header.facts, header.digest


def read_facts(path: Path) -> Facts:
    """The facts from the header alone; the data's length is checked, its bytes are not.

    Raises:
        Damaged: not a file of ours, or one cut short.
        CheckpointError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return _read_header(stream, path).facts
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}", remedy(error)) from error


def _encode_header(tensors: Mapping[str, Tensor], facts: Facts) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise CheckpointError(f"the tensor {name} ({tensor.dtype}) cannot be saved")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    try:
        told = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a fact of the checkpoint is no JSON value: {error}") from error
    header: dict[str, Any] = {"__metadata__": {"digest": _ZEROS.decode(), "facts": told}, **entries}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MOST_HEADER:
        raise CheckpointError(f"the header of the checkpoint has {len(encoded)} bytes, over {_MOST_HEADER}")
    return encoded


def _read_header(stream: BufferedReader, path: Path) -> _Header:
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or not len(_OPENING) + len(_ZEROS) <= length <= min(size - 8, _MOST_HEADER):
        raise Damaged(path, f"its header cannot have {length} bytes in a file of {size}")
    raw = stream.read(length)
    digest = raw[len(_OPENING) : len(_OPENING) + len(_ZEROS)]
    if not raw.startswith(_OPENING) or len(raw) != length:
        raise Damaged(path, "its header does not begin like ours")
    try:
        parsed = _parsed(raw)
        facts = _parsed(parsed.pop("__metadata__")["facts"])
        places = [_place(name, entry) for name, entry in parsed.items()]
        if not isinstance(facts, dict):
            raise ValueError("its facts are no JSON object")
        _require_side_by_side(places, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(path, f"its header is wrong: {str(error)[:_WORDS]}") from error
    return _Header(_OPENING + _ZEROS + raw[len(_OPENING) + len(_ZEROS) :], digest.decode(), facts, places)


def _parsed(text: str | bytes) -> Any:
    """JSON as we write it: no name twice, no NaN and no infinity."""
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _place(name: str, entry: dict[str, Any]) -> _Place:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    # type() and not isinstance(): true and false are integers to isinstance.
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (*shape, begin, end)):
        raise ValueError(f"the tensor {name} has a size that is none")
    if len(shape) > _MOST_DIMENSIONS or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the tensor {name} does not fill its place")
    return _Place(name, dtype, tuple(shape), begin, end)


def _require_side_by_side(places: list[_Place], size: int) -> None:
    position = 0
    for place in places:
        if place.begin != position:
            raise ValueError(f"the tensor {place.name} does not follow the one before")
        position = place.end
    if position != size:
        raise ValueError(f"its data has {size} bytes instead of {position}")


def _read_tensor(stream: BufferedReader, place: _Place, hasher: Any, path: Path) -> Tensor:
    try:
        data = torch.empty(place.end - place.begin, dtype=torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(f"not enough memory for {path}", "free memory and start again") from error
    rest = data.numpy().data
    while rest:
        count = stream.readinto(rest[:_BLOCK])
        if not count:
            raise Damaged(path, "it ended while it was read")
        hasher.update(rest[:count])
        rest = rest[count:]
    if place.dtype is torch.bool and bool((data > 1).any()):
        raise Damaged(path, f"the tensor {place.name} holds what is neither true nor false")
    try:
        return data.view(place.dtype).reshape(place.shape) if len(data) else torch.empty(place.shape, dtype=place.dtype)
    except RuntimeError as error:
        raise Damaged(path, f"the tensor {place.name} has an impossible shape") from error
