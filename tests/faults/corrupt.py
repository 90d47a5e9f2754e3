"""Every file of the project damaged in every way: refused by name or passed over, and never a traceback.

Files that carry a checksum (checkpoint, token file, heartbeat) are moreover never read as something else.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from solorun import label
from tests.faults import corrupt_guard as guard
from tests.faults import corrupt_models as models
from tests.faults.mutations import Mutation
from tests.faults.tally import Tally

LONGEST_S = 3.0
"""Processor time that any one look at a damaged file may take; most take less than a millisecond."""

_SHOWN = 40

QUICK_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Tens of thousands of small files are written there in the time of hundreds elsewhere; None for the usual place."""


class _Book:
    """What was counted, and what went wrong, each kind of it once."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def look(self, of: str, what: str, look: Callable[[], object]) -> None:
        """One look at a damaged file; what it raises is a failure."""
        self.cases[of] += 1
        begin, wrong = time.process_time(), ""
        try:
            look()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a SystemExit and a panic of a library are failures as well
            place = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
            where = f" at {Path(place[-1].filename).name}:{place[-1].lineno}" if place else ""
            wrong = f"{type(error).__name__}{where}: {str(error)[:160]}"
        if not wrong and time.process_time() - begin > LONGEST_S:
            wrong = f"{time.process_time() - begin:.1f} s of processor time"
        if wrong:
            self.failures.setdefault(f"{of}: {wrong[:60]}", f"{of}, {what[:80]}: {wrong}")

    def tally(self, name: str, seed: int) -> Tally:
        """All of it."""
        failures = tuple(f"{line} (seed {seed})" for line in self.failures.values())
        return Tally(name, sum(self.cases.values()), failures[:_SHOWN], dict(self.cases))


def attack(seed: int, share: float = 1.0) -> Tally:
    """Damage all files.

    Args:
        seed: of where the damage falls.
        share: 1 for each byte and each field; less for a sample that has every kind of damage.
    """
    book = _Book()
    for one in (_guard, _models):
        with tempfile.TemporaryDirectory(prefix="corrupt-", dir=QUICK_DISK) as place:
            one(Path(place), random.Random(seed), share, book)
    return book.tally("corrupt input", seed)


def _guard(place: Path, chance: random.Random, share: float, book: _Book) -> None:
    scene, grace = guard.Scene(place), label.EMPTY_GRACE_S
    label.EMPTY_GRACE_S = 0.0  # an old trainer's half-written label is waited for, and here there is none
    try:
        with guard.at(scene):
            for victim in scene.victims:
                cases = list(guard.damage(victim, chance, int(2000 * share), share >= 1))
                _harm(scene, victim, cases, chance, max(8, int(400 * share)), book)
                scene.restore()
    finally:
        label.EMPTY_GRACE_S = grace
        scene.close()


def _harm(
    scene: guard.Scene, victim: guard.Victim, cases: list[Mutation], chance: random.Random, asked: int, book: _Book
) -> None:
    """Every case read by the file's own reader; a sample of them put before the commands as well."""
    commands = list(guard.commands(scene))
    put = set(chance.sample(range(len(cases)), min(asked, len(cases))))
    for number, (what, data) in enumerate(cases):
        victim.path.write_bytes(data)
        book.look(victim.name, what, victim.read)
        if number in put:
            words = chance.choice(commands)
            book.look(f"solorun {words[0]}", f"{victim.name} {what}", lambda words=words: guard.ask(*words))
            scene.restore()


def _models(place: Path, chance: random.Random, share: float, book: _Book) -> None:
    text = place / "text"
    text.mkdir()
    models.a_text(text)
    for name, path, cases in _model_files(place, text, chance, share):
        sound = path.read_bytes() if path.exists() else b""
        for case in cases:
            path.write_bytes(case.data)
            book.look(name, case.what, lambda case=case, path=path: case.judge(path))
            shutil.rmtree(path.with_suffix(".cache"), ignore_errors=True)
        path.write_bytes(sound)


def _model_files(
    place: Path, text: Path, chance: random.Random, share: float
) -> Iterator[tuple[str, Path, Iterable[models.Case]]]:
    corpus = models.prepare(text, place / "bytes", "bytes")
    for model in ("v2", "v3", "v4"):
        (place / model).mkdir()
        path = models.a_checkpoint(place / model, corpus, model)
        yield f"checkpoint of {model}", path, models.checkpoint_cases(path, chance, share)
        yield f"forged checkpoint of {model}", path, models.forged_cases(path, corpus, chance, share)
    pairs = models.prepare(text, place / "pairs", "bpe:300")
    yield "token file", pairs.path, models.token_cases(pairs.path, chance, share)
    tokenizer = pairs.path.with_suffix(".tokenizer.json").read_bytes()
    yield "tokenizer", place / "elsewhere.json", models.tokenizer_cases(tokenizer, text, chance, share)
