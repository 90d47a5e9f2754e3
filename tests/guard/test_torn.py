"""Which files are torn or mixed, and that they are put aside and never lost."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from solorun.torn import Damaged, damaged, fault, quarantine

from .stage import events, names


def safetensors(path: Path, data: int, tell: int | None = None) -> Path:
    header = json.dumps(
        {"__metadata__": {"a": "b"}, "w": {"dtype": "U8", "shape": [data], "data_offsets": [0, tell or data]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))
    return path


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 1000)
        file.writestr("archive/data/0", os.urandom(1000))
    return path


def test_whole_checkpoints_are_whole(results: Path) -> None:
    safetensors(results / "checkpoint_10.safetensors", 100)
    for suffix in ("pt", "pth", "npz", "ckpt"):
        archive(results / f"checkpoint_10.{suffix}")
    assert damaged(results) == ()


@pytest.mark.parametrize("kept", [0, 4, 8, 40, 150])
def test_a_safetensors_file_cut_anywhere_is_torn(results: Path, kept: int) -> None:
    path = safetensors(results / "checkpoint_10.safetensors", 100)
    path.write_bytes(path.read_bytes()[:kept])
    assert fault(path)


def test_a_safetensors_file_that_is_longer_than_its_header_tells_or_no_json_is_torn(results: Path) -> None:
    assert "its header tells of" in fault(safetensors(results / "checkpoint_1.safetensors", 100, tell=90))
    path = results / "checkpoint_2.safetensors"
    path.write_bytes((4).to_bytes(8, "little") + b"[{}]")
    assert fault(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "wants" in fault(path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "npz", "ckpt"])
def test_an_archive_that_is_cut_or_overwritten_in_the_middle_is_torn(results: Path, suffix: str) -> None:
    path = archive(results / f"checkpoint_10.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in fault(path)
    path.write_bytes(whole[:200] + b"another writer" + whole[214:])
    assert "checksum" in fault(path)


def test_what_cannot_be_judged_is_kept(results: Path) -> None:
    (results / "checkpoint_1.pt").write_bytes(b"\x80\x02}q\x00.")  # the older form of torch
    (results / "checkpoint_2.xyz").write_bytes(b"who knows")
    (results / "notes.txt").write_bytes(b"")
    (results / ".checkpoint_3.tmp").write_bytes(b"")  # the next start clears it
    assert damaged(results) == ()


def test_an_empty_checkpoint_and_an_unfinished_part_are_torn(results: Path) -> None:
    (results / "checkpoint_2.xyz").write_bytes(b"")
    (results / "checkpoint_3.pt.tmp").write_bytes(b"PK")
    assert [file.name for file in damaged(results)] == ["checkpoint_2.xyz", "checkpoint_3.pt.tmp"]


def test_metrics_that_two_wrote_into_each_other_are_mixed_and_a_killed_writers_half_line_is_not(results: Path) -> None:
    path = results / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 2}\n{"step": 3, "l')
    assert fault(path) == ""
    path.write_text('{"step": 1}\n{"step": 2, "lo{"step": 7}\n')
    assert "line 2" in fault(path)


def test_links_and_directories_are_never_judged(results: Path) -> None:
    (results / "elsewhere.pt").symlink_to("/nonexistent")
    (results / "checkpoint_5.pt").mkdir()
    assert damaged(results) == ()


def test_quarantine_moves_and_never_overwrites_nor_deletes(results: Path, fd: int) -> None:
    for text in ("one", "two"):
        (results / "training.log").write_text(text)
        (results / "sub").mkdir(exist_ok=True)
        (results / "sub" / "part.pt").write_text(text)
        files = (Damaged("training.log", "mixed"), Damaged("sub/part.pt", "torn"), Damaged("gone.pt", "torn"))
        place = quarantine(results, fd, files, 0.0)
        assert place is not None
        assert (place / "training.log").read_text() == (place / "sub" / "part.pt").read_text() == text
    assert names(results / "archive") == {"quarantine-19700101-000000", "quarantine-19700101-000000.1"}
    assert events(results) == ["quarantined", "quarantined"]
    told = json.loads((results / "events.jsonl").read_text().splitlines()[0])
    assert told["files"] == [{"name": "training.log", "why": "mixed"}, {"name": "sub/part.pt", "why": "torn"}]


def test_quarantine_of_nothing_makes_nothing(results: Path, fd: int) -> None:
    assert quarantine(results, fd, (Damaged("gone.pt", "torn"),), 0.0) is None
    assert names(results) == set()
