"""Tokenizers: every text comes back, nothing in a text is taken for a mark, nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kssm import vocabulary
from kssm.errors import BadUsage, CorpusError, Stopped
from kssm.texts import text_source
from kssm.vocabulary import END, Bytes, LearnPairs, Vocabulary, choose, load

PLAY = "".join(piece.text for piece in text_source(None).files[0].pieces())
PAIRS = LearnPairs(600).learn([PLAY], len(PLAY))

LEARN = """
from kssm.texts import text_source
from kssm.vocabulary import LearnPairs
play = "".join(piece.text for piece in text_source(None).files[0].pieces())
print(LearnPairs(600).learn([play], len(play)).fingerprint)
"""


@pytest.mark.parametrize("threads", ["true", "false"])
def test_the_same_text_gives_the_same_tokenizer_in_every_process(threads: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": threads}
    other = subprocess.run([sys.executable, "-c", LEARN], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == PAIRS.fingerprint


def test_pairs_shorten_a_play() -> None:
    (ids,) = PAIRS.encode_pieces([PLAY])
    assert len(ids) < len(PLAY) / 1.8
    assert PAIRS.decode(ids.tolist()) == PLAY
    assert ids.max() < PAIRS.size == 600


@given(text=st.text())
@pytest.mark.parametrize("tokenizer", [Bytes(), PAIRS], ids=["bytes", "pairs"])
def test_any_text_comes_back(tokenizer: Vocabulary, text: str) -> None:
    text = text.encode(errors="replace").decode()
    (ids,) = tokenizer.encode_pieces([text])
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.end not in ids


@pytest.mark.parametrize("tokenizer", [Bytes(), PAIRS], ids=["bytes", "pairs"])
def test_text_that_spells_the_end_is_text(tokenizer: Vocabulary) -> None:
    (ids,) = tokenizer.encode_pieces([f"an {END} is no end"])
    assert tokenizer.end not in ids
    assert tokenizer.decode([*ids.tolist(), tokenizer.end]) == f"an {END} is no end"


@pytest.mark.parametrize("tokenizer", [Bytes(), PAIRS], ids=["bytes", "pairs"])
def test_a_tokenizer_comes_back_from_its_document(tokenizer: Vocabulary) -> None:
    again = load(tokenizer.document, "here")
    assert (again.fingerprint, again.size, again.end) == (tokenizer.fingerprint, tokenizer.size, tokenizer.end)
    assert again.encode_pieces([PLAY])[0].tolist() == tokenizer.encode_pieces([PLAY])[0].tolist()


def test_a_foreign_tokenizer_file_gets_an_end_and_loses_its_trimmings(tmp_path: Path) -> None:
    words = {"[CLS]": 0, "a": 1, "b": 2, "[UNK]": 3}
    engine = Tokenizer(models.WordLevel(words, "[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 0)])
    engine.enable_truncation(2)
    engine.enable_padding(length=9)
    engine.save(str(tmp_path / "words.json"))
    tokenizer = choose(str(tmp_path / "words.json"))
    assert isinstance(tokenizer, Vocabulary)
    assert (tokenizer.size, tokenizer.end) == (5, 4)
    assert tokenizer.encode_pieces(["a b a b"])[0].tolist() == [1, 2, 1, 2]
    assert load(tokenizer.document, "here").end == 4


def test_only_a_bounded_sample_spread_over_the_text_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SAMPLE", 1000)
    taken = list(vocabulary._spread(("x" * 100 for _ in range(100)), 1000 / 10_000))
    assert len(taken) == 10


def test_a_stop_while_learning_comes_through() -> None:
    def stopping() -> Any:
        yield PLAY
        raise Stopped

    with pytest.raises(Stopped):
        LearnPairs(600).learn(stopping(), len(PLAY))


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("bpe:256", BadUsage, "257"),
        ("bpe:many", BadUsage, "names no tokenizer"),
        ("words", BadUsage, "names no tokenizer"),
        ("tiktoken:nine", BadUsage, "no encoding known here"),
        ("gone.json", CorpusError, "cannot read the tokenizer gone.json"),
    ],
)
def test_a_wrong_choice_is_told_with_the_right_ones(spec: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        choose(spec)
    assert getattr(caught.value, "next_step", "")


# A prefix longer than its tokens makes the tokenizers library panic, which is no Exception.
PANICS = b"""{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "continuing_subword_prefix": "xxxxxx",
"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"""


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"7", b"\xff", b'{"kssm_vocabulary": "tiktoken"}', b'{"model": {}}', PANICS]
)
def test_a_damaged_tokenizer_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(CorpusError, match="is not a tokenizer"):
        choose(str(tmp_path / "bad.json"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_tiktoken_without_its_ranks_is_an_error_and_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    with pytest.raises(CorpusError, match="not on this machine") as caught:
        choose("tiktoken:cl100k_base")
    assert "TIKTOKEN_CACHE_DIR" in caught.value.next_step
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(CorpusError, match="no such file"):
        choose("tiktoken:cl100k_base")
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    damaged = tmp_path / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    damaged.write_bytes(b"damaged")
    with pytest.raises(CorpusError, match="are damaged"):
        choose("tiktoken:cl100k_base")
    assert damaged.exists(), "tiktoken itself would have deleted it"


@pytest.mark.usefixtures("no_network")
def test_tiktoken_with_its_ranks_is_a_tokenizer_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    ranks = [bytes([value]) for value in range(256)] + [b"th", b"the", b" the"]
    content = b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(ranks))
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()).write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(vocabulary._RANKS_SHA256, "cl100k_base", hashlib.sha256(content).hexdigest())
    load_ranks = public.load_tiktoken_bpe
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda url, **_: load_ranks(url))
    tokenizer = choose("tiktoken:cl100k_base")
    assert isinstance(tokenizer, Vocabulary)
    (ids,) = tokenizer.encode_pieces(["of the <|endoftext|> é"])
    assert 258 in ids
    assert tokenizer.end not in ids
    assert tokenizer.decode([*ids.tolist(), tokenizer.end]) == "of the <|endoftext|> é"
    assert load(tokenizer.document, "here").fingerprint == tokenizer.fingerprint
    assert json.loads(tokenizer.document)["name"] == "cl100k_base"
