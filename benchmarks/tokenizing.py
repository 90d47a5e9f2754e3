"""Text into a token file, all of it: beside the tokenizers library alone on all cores, and one plain Python loop.

    python3 -m benchmarks.tokenizing [MB]

Ours is `kssm.corpus.prepare`: reading twice, UTF-8 checks, hashes, the split, encoding, entropies, writing, fsync. The
library alone gets the same text from memory, in the pieces and batches it likes best, and its ids are thrown away. The
text is the 38 plays, and copies of them in which other words are new each time, as in any longer text.
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tokenizers import Tokenizer

from benchmarks.measure import Row, interleaved, tell
from kssm import corpus, vocabulary
from kssm.texts import text_source

MEGABYTES, ROUNDS, BATCH, AIM = 10, 3, 32, 0.8


def write_varied(folder: Path, megabytes: int) -> None:
    """The plays over and over; from the second copy on a tenth of the words are others in each."""
    plays = ["".join(piece.text for piece in file.pieces()) for file in text_source(None).files]
    known = sorted(set(re.findall(r"[A-Za-z]{4,}", "".join(plays))))
    for copy in range(round(megabytes / 5)):
        chance = random.Random(copy)
        new = {
            word: word + "".join(chance.choices("aeioulnrst", k=3)) for word in known if copy and chance.random() < 0.1
        }
        for number, play in enumerate(plays):
            text = "".join(new.get(word, word) for word in re.findall(r"[A-Za-z]{4,}|[A-Za-z]{1,3}|[^A-Za-z]+", play))
            (folder / f"{copy:03}-{number:02}.txt").write_text(text)


def library(engine: Tokenizer, texts: list[str]) -> Callable[[], None]:
    """The library alone on all cores."""

    def call() -> None:
        for start in range(0, len(texts), BATCH):
            engine.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)

    return call


def loop_mb_s(engine: Tokenizer, text: str) -> float:
    """MB/s of a loop over lines."""
    began = time.perf_counter()
    ids: list[int] = []
    for line in text.splitlines(keepends=True):
        ids.extend(engine.encode(line, add_special_tokens=False).ids)
    return len(text.encode()) / 1e6 / (time.perf_counter() - began)


def learn(place: Path) -> Path:
    """The tokenizer of the plays, 8,192 byte pairs, as a file."""
    began = time.perf_counter()
    plays = text_source(None)
    learned = vocabulary.LearnPairs().learn((piece.text for piece in plays.pieces()), plays.size)
    print(f"learning {learned.size} byte pairs from the plays takes {time.perf_counter() - began:.1f} s, once")
    path = place / "pairs.json"
    path.write_text(learned.document)
    return path


def compare(source: Path | None, pairs: Path, place: Path, cores: int, what: str) -> Row:
    """Ours beside the library, both over one text; `cores` as ours shall think there are."""
    texts = [piece.text for piece in text_source(source).pieces()]
    size = sum(len(text.encode()) for text in texts) / 1e6
    engine = Tokenizer.from_file(str(pairs))
    engine.encode_special_tokens = True

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=place) as cache:
            corpus.prepare(source, Path(cache), str(pairs))

    with mock.patch.object(vocabulary, "cores", lambda: cores):
        pair = interleaved(library(engine, texts), ours, ROUNDS)
    loop = loop_mb_s(engine, "".join(texts[:8]))
    return Row(
        what=f"tokenizing {size:.0f} MB, {what}",
        plain=f"library alone {size / pair.plain:.1f} MB/s, Python loop {loop:.1f} MB/s",
        ours=f"{size / pair.ours:.1f} MB/s",
        ratio=f"{pair.ratio:.2f}x of the library",
        aim=f">= {AIM}x",
        met=pair.ratio >= AIM,
    )


def main() -> None:
    """The plays, longer text, and longer text the way of machines with many cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    megabytes = next((int(word) for word in sys.argv[1:] if word.isdecimal()), MEGABYTES)
    few = vocabulary.cores()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        place = Path(top)
        pairs, varied = learn(place), place / "varied"
        varied.mkdir()
        write_varied(varied, megabytes)
        tell(
            [
                compare(None, pairs, place, few, "the plays"),
                compare(varied, pairs, place, few, "varied plays"),
                compare(varied, pairs, place, 64, "varied plays, as on many cores"),
            ]
        )


if __name__ == "__main__":
    main()
