"""Who holds a directory: the label's form, the record's codec, and the verdict table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solorun.owner import (
    PID_MAX,
    Alive,
    Foreign,
    Free,
    Gone,
    Held,
    Here,
    Label,
    Owner,
    ProcessId,
    Sighting,
    Stale,
    decode_owner,
    encode_owner,
    judge,
    parse_label,
)

HERE = Here("studio", "studio/m1", "boot-1", "pid:[1]")
REBOOTED = replace(HERE, boot="boot-2")
ELSEWHERE = Here("other", "other/m2", "boot-9", "pid:[1]")
CONTAINER = replace(HERE, namespace="pid:[7]")

WRITTEN = 1_000_000.0
OWNER = Owner(
    run_id="20260101-000000-aaaaaaaa",
    process=ProcessId(HERE, 4242, 777),
    supervisor=None,
    adopted=True,
    user="ada",
    argv=("python3", "train.py"),
    cwd="/home/ada",
    since=WRITTEN,
    directory="/data/results",
    directory_inode=99,
)
OURS = Label(4242, b"4242\n", 5, WRITTEN)
OTHER = Label(5151, b"5151\n", 6, WRITTEN)
EMPTY = Label(None, b"", 5, WRITTEN)
GARBAGE = Label(None, b"hello", 5, WRITTEN)
THE_SAME = Alive(777, WRITTEN - 5, "R")
ANOTHER = Alive(888, WRITTEN + 500, "R")
HIDDEN = Alive(None, None, "?")

TABLE: list[tuple[str, Label | None, Owner | None, Sighting, Here, bool, type, str]] = [
    # what it is, label, record, sighting, seen from, copied, verdict, words of the proof
    ("nothing stands there", None, None, Gone(), HERE, False, Free, ""),
    ("label and record of a live process", OURS, OWNER, THE_SAME, HERE, False, Held, "start time of the record"),
    ("the label was deleted, the record's process lives", None, OWNER, THE_SAME, HERE, False, Held, "alive"),
    ("the label was emptied, the record's process lives", EMPTY, OWNER, THE_SAME, HERE, False, Held, "alive"),
    ("the label is garbage, the record's process lives", GARBAGE, OWNER, THE_SAME, HERE, False, Held, "alive"),
    ("its start time is hidden", OURS, OWNER, HIDDEN, HERE, False, Held, "cannot be read"),
    ("label and record of a dead process", OURS, OWNER, Gone(), HERE, False, Stale, "4242 is dead"),
    ("only the record of a dead process", None, OWNER, Gone(), HERE, False, Stale, "4242 is dead"),
    ("garbage and the record of a dead process", GARBAGE, OWNER, Gone(), HERE, False, Stale, "4242 is dead"),
    ("the PID was recycled", OURS, OWNER, ANOTHER, HERE, False, Stale, "another process"),
    ("the machine was restarted, the PID is free", OURS, OWNER, Gone(), REBOOTED, False, Stale, "restarted"),
    ("the machine was restarted, the PID is taken", OURS, OWNER, THE_SAME, REBOOTED, False, Stale, "restarted"),
    ("another host", OURS, OWNER, Gone(), ELSEWHERE, False, Foreign, "host 'studio'"),
    ("another host, label deleted", None, OWNER, Gone(), ELSEWHERE, False, Foreign, "host 'studio'"),
    ("another PID namespace", OURS, OWNER, Gone(), CONTAINER, False, Foreign, "namespace"),
    ("a copied directory", OURS, OWNER, THE_SAME, HERE, True, Stale, "copied from '/data/results'"),
    ("a copied directory without its label", None, OWNER, THE_SAME, HERE, True, Stale, "copied"),
    ("an old-style trainer in a copied directory", OTHER, OWNER, HIDDEN, HERE, True, Held, "5151 is alive"),
    ("an old-style trainer", OTHER, None, Alive(3, WRITTEN - 9, "S"), HERE, False, Held, "5151 is alive"),
    ("an old-style trainer, just born", OTHER, None, Alive(3, WRITTEN + 1.9, "S"), HERE, False, Held, "alive"),
    ("an old-style label, its PID recycled", OTHER, None, Alive(3, WRITTEN + 2.1, "S"), HERE, False, Stale, "born 2 s"),
    ("an old-style trainer, its birth hidden", OTHER, None, HIDDEN, HERE, False, Held, "alive"),
    ("an old-style trainer that died", OTHER, None, Gone(), HERE, False, Stale, "5151 is dead"),
    ("an old-style label beside a dead run's record", OTHER, OWNER, HIDDEN, HERE, False, Held, "5151 is alive"),
    ("an empty label", EMPTY, None, Gone(), HERE, False, Stale, "empty"),
    ("a garbled label", GARBAGE, None, Gone(), HERE, False, Stale, "names no process"),
    ("a suspended process", OURS, OWNER, Alive(777, WRITTEN, "T"), HERE, False, Held, "alive"),
]


@pytest.mark.parametrize(
    ("label", "owner", "seen", "place", "copied", "verdict", "words"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE]
)
def test_the_verdict(
    label: Label | None, owner: Owner | None, seen: Sighting, place: Here, copied: bool, verdict: type, words: str
) -> None:
    found = judge(label, owner, seen, place, is_copy=copied)
    assert type(found) is verdict
    assert words in str(getattr(found, "proof", getattr(found, "reason", "")))


def test_a_held_verdict_by_record_names_its_owner_and_by_a_bare_label_none() -> None:
    assert judge(OURS, OWNER, THE_SAME, HERE) == Held(
        4242, OWNER, "PID 4242 is alive, with the start time of the record"
    )
    assert judge(OTHER, None, HIDDEN, HERE) == Held(5151, None, "PID 5151 is alive")


def test_a_stale_verdict_carries_the_label_to_clear() -> None:
    found = judge(OURS, OWNER, Gone(), HERE)
    assert isinstance(found, Stale)
    assert found.label is OURS


@pytest.mark.parametrize("text", [b"1", b"1\n", b"4242\n", b"4242", b"%d\n" % PID_MAX])
def test_one_line_of_digits_in_range_is_a_label(text: bytes) -> None:
    assert parse_label(text) == int(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"0", b"0\n", b"-1", b"+1", b"9999999999", b"%d" % (PID_MAX + 1), b"12\n34\n", b"12\n\n",
        b" 12", b"12 ", b"12\r\n", b"1 2", b"12\0", b"12\0\n", b"\0\0\0\0", b"\xff\xfe", b"\xef\xbb\xbf12",
        "\u0661\u0662".encode(), "\uff11\uff12".encode(), b"12.0", b"1e3", b"0x10", b"1_000", b"pid: 12",
    ],
)  # fmt: skip
def test_anything_else_names_no_process(text: bytes) -> None:
    assert parse_label(text) is None


@given(st.binary(max_size=40))
def test_no_bytes_are_ever_more_than_a_pid_or_nothing(text: bytes) -> None:
    found = parse_label(text)
    assert found is None or 1 <= found <= PID_MAX


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
paths = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
places = st.builds(Here, texts, texts, texts, texts)
processes = st.builds(ProcessId, places, st.integers(1, PID_MAX), st.integers(0, 2**63))
owners = st.builds(
    Owner,
    run_id=texts,
    process=processes,
    supervisor=st.none() | processes,
    adopted=st.booleans(),
    user=texts,
    argv=st.lists(paths, max_size=4).map(tuple),
    cwd=paths,
    since=st.floats(0, 1e12),
    directory=paths,
    directory_inode=st.integers(0, 2**64),
)


@given(owners)
def test_a_record_comes_back_as_it_was_written(owner: Owner) -> None:
    assert decode_owner(encode_owner(owner)) == owner


@given(owners, st.data())
def test_a_damaged_record_is_an_owner_or_a_value_error_and_nothing_else(owner: Owner, data: st.DataObject) -> None:
    whole = bytearray(encode_owner(owner))
    at = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "drop", "junk"])):
        case "cut":
            del whole[at:]
        case "flip":
            whole[at] ^= data.draw(st.integers(1, 255))
        case "drop":
            del whole[at]
        case _:
            whole[at:at] = data.draw(st.binary(max_size=8))
    _owner_or_value_error(bytes(whole))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["run_id", "process", "supervisor", "adopted", "user", "argv", "cwd", "since", "directory", "directory_inode"]


@given(owners, st.sampled_from(KEYS), json_values)
def test_a_record_with_a_value_of_another_kind_is_an_owner_or_a_value_error(owner: Owner, key: str, value: Any) -> None:
    facts = json.loads(encode_owner(owner))
    facts[key] = value
    _owner_or_value_error(json.dumps(facts).encode())


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_bytes_of_any_kind_are_an_owner_or_a_value_error(data: bytes) -> None:
    _owner_or_value_error(data)


def _owner_or_value_error(data: bytes) -> None:
    try:
        found = decode_owner(data)
    except ValueError:
        return
    assert isinstance(found, Owner)
    encode_owner(found)
    found.run_id.encode("utf-8", "surrogateescape")  # it is compared with environments, byte by byte


def test_a_record_nested_without_end_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not an owner record"):
        decode_owner(b"[" * 100_000)


@pytest.mark.parametrize("since", ["NaN", "Infinity", "-Infinity"])
def test_a_record_of_no_time_is_a_value_error(since: str) -> None:
    whole = encode_owner(OWNER).replace(b'"since": 1000000.0', b'"since": ' + since.encode())
    assert since.encode() in whole
    with pytest.raises(ValueError, match="since"):
        decode_owner(whole)


@pytest.mark.parametrize("pid", [0, -1, PID_MAX + 1])
def test_a_record_with_a_pid_that_cannot_be_is_a_value_error(pid: int) -> None:
    facts = json.loads(encode_owner(OWNER))
    facts["process"]["pid"] = pid
    with pytest.raises(ValueError, match="out of range"):
        decode_owner(json.dumps(facts).encode())


def test_keys_of_a_later_version_are_tolerated() -> None:
    facts = json.loads(encode_owner(OWNER))
    facts["colour"] = "blue"
    facts["process"]["cgroup"] = "/x"
    assert decode_owner(json.dumps(facts).encode()) == OWNER
