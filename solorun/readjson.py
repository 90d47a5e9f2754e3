"""JSON that is read without the package `json`, whose import costs as much as half a start of Python."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LATEST = 1e12
"""Seconds since the epoch, in the year 33658: beyond it a number is no time that a calendar could show."""

_LARGEST = 1 << 64


def is_moment(value: Any) -> bool:
    """Whether a value is a time in seconds since the epoch; true and false are no numbers here, nor is infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LATEST


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number that a PID, an inode, a step or a status can be: no longer than 64 bits."""
    return type(value) is int and abs(value) <= _LARGEST


class _Way:
    """What the scanner of `json` wants to know: everything as `json.loads` has it."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _scanner() -> Callable[[str, int], tuple[Any, int]] | None:
    try:
        from _json import make_scanner
    except ImportError:  # a Python without it has `json` all the same
        return None
    return make_scanner(_Way)  # type: ignore[arg-type]  # it asks for nothing else


_scan = _scanner()


def read_json(data: bytes) -> Any:
    """What `json.loads` gives.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    if _scan is not None:
        try:
            text = data.decode().strip(" \t\n\r")
            value, end = _scan(text, 0)
        except (ValueError, StopIteration):
            end = -1
        if end >= 0 and end == len(text):
            return value
    import json  # other encodings, and words on what is wrong

    return json.loads(data)
