"""JSON is read as the standard library reads it, whatever stands there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solorun import readjson
from solorun.readjson import read_json


def outcome(read: Callable[[bytes], Any], data: bytes) -> str:
    try:
        return repr(read(data))
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


ODD = [
    b"", b" ", b"{", b"[1,]", b'{"a":1} x', b"\xff", b'"\xff"', b'"\x01"', b"nul", b"NaN", b"-Infinity", b"1e999",
    b'{"a":1,"a":2}', b"\xef\xbb\xbf{}",
    '{"é": 1}'.encode("utf-16"), b'"\\ud800"', b'"\xed\xa0\x80"', b"\x0b1", b"\xc2\xa01",
]  # fmt: skip


@pytest.mark.parametrize("data", ODD, ids=ascii)
@pytest.mark.parametrize("accelerated", [True, False])
def test_odd_text_is_read_or_refused_alike(data: bytes, accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not accelerated:
        monkeypatch.setattr(readjson, "_scan", None)
    assert outcome(read_json, data) == outcome(json.loads, data)


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RecursionError):
        read_json(b"[" * 200_000)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_every_value_comes_back(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    assert outcome(read_json, data) == outcome(json.loads, data)
