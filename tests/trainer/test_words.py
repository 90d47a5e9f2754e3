"""Words looked up have the ids that the tokenizers library gives them where they stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from kssm import words
from kssm.texts import text_source
from kssm.vocabulary import LearnPairs
from kssm.words import WordTable, cuts_alike

PLAY = "".join(piece.text for piece in text_source(None).files[0].pieces())
PAIRS = LearnPairs(600).learn([PLAY], len(PLAY))
ENGINE = Tokenizer.from_str(PAIRS.document)
ENGINE.encode_special_tokens = True
PARTS = pre_tokenizers.ByteLevel(add_prefix_space=False)

# Blanks of all kinds, letters and digits of other scripts, marks that join a letter, apostrophes.
TRICKY = (
    "aZstlm'\"  \n\n\t\r09,.-_\0\x0b\x1c\x1f\x85\xa0\u180e\u200b\u2028\u3000\ufeff"
    "\u00e9\u0301\u2019\u00bd\u2167\u0663\u4e2d\U0001f600"
)


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in ENGINE.encode_batch_fast(list(texts), add_special_tokens=False)]


def parts(text: str) -> list[str]:
    return [part for part, _ in PARTS.pre_tokenize_str(text)]


@given(st.text(st.one_of(st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"]))))
@example("it's 'tis\n\n  don't,--and 'll")
@example("(self.x['s'])\n\n\n\tx")
def test_no_part_of_the_tokenizers_pattern_is_cut(text: str) -> None:
    assert [part for word in words._words(text) for part in parts(word)] == parts(text)


@given(st.lists(st.text(TRICKY), max_size=4))
def test_the_ids_are_those_of_the_library_at_first_sight_and_again(texts: list[str]) -> None:
    table = WordTable(encode)
    for _ in range(2):
        assert [ids.tolist() for ids in table.encode_pieces(texts)] == encode(texts)


def test_a_play_is_looked_up_and_not_encoded_again() -> None:
    asked: list[int] = []

    def counting(texts: Sequence[str]) -> list[list[int]]:
        asked.append(sum(map(len, texts)))
        return encode(texts)

    table = WordTable(counting)
    for _ in range(2):
        assert table.encode_pieces([PLAY])[0].tolist() == encode([PLAY])[0]
    assert len(asked) == 1
    assert asked[0] < len(PLAY) / 3


def test_memory_is_bounded_whatever_words_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST", 100)
    table = WordTable(encode)
    for number in range(0, 1000, 10):
        text = " ".join(f"{one}" for one in range(number, number + 10)) + " " + "x" * 1000
        assert table.encode_pieces([text])[0].tolist() == encode([text])[0]
    assert len(table._known) <= 100
    assert max(map(len, table._known)) <= words._LONGEST


def test_text_of_ever_new_words_is_encoded_as_it_stands_and_a_play_after_it_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "_JUDGED", 500)
    monkeypatch.setattr(words, "_REST", 9_000)
    whole: list[bool] = []
    text = ""

    def watching(texts: Sequence[str]) -> list[list[int]]:
        whole.append(list(texts) == [text])
        return encode(texts)

    table = WordTable(watching)
    for number in range(4):
        text = " ".join(f"{one}" for one in range(1000 * number, 1000 * number + 1000))
        assert table.encode_pieces([text])[0].tolist() == encode([text])[0]
    assert whole == [False, True, True, False]


def test_only_tokenizers_that_cut_by_the_known_pattern_are_looked_up() -> None:
    known = json.loads(PAIRS.document)
    assert cuts_alike(known)
    others: list[dict[str, Any]] = [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**known["pre_tokenizer"], "add_prefix_space": True}},
        {"pre_tokenizer": {**known["pre_tokenizer"], "use_regex": False}},
        {"model": {"type": "WordLevel"}},
        {"model": {**known["model"], "dropout": 0.1}},
        {"added_tokens": [{"content": "the", "special": False}]},
    ]
    assert [cuts_alike({**known, **other}) for other in others] == [False] * len(others)
