"""A run that was killed or stopped at each of its steps ends with the very bits of one that nothing interrupted.

A life follows another in one directory, each ended at a later step; then the run is completed, and all
its tensors and losses are compared with those of an unbroken run: weights, optimizer, carried state.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kssm.checkpoint import load
from tests.faults import dying
from tests.faults.forked import SERVER, ForkedTrainer, forked_trainer
from tests.faults.tally import Tally

STEPS, SAVES, EVALUATIONS = 30, 3, 10
_ARMED = SERVER.replace(
    "def child(order):", "from tests.faults import dying\ndef child(order):\n    dying.arm(order['words'])"
)
_FLAGS = (
    "--vocabulary", "bytes", "--batch-size", "2", "--gradient-accumulation", "2", "--seq-length", "64",
    "--eval-batches", "1", "--eval-interval", str(EVALUATIONS), "--log-interval", "1", "--keep", "2",
    "--save-interval", str(SAVES), "--max-steps", str(STEPS), "--device", "cpu",
)  # fmt: skip
_LONGEST_LIFE_S = 300
TIGHT = "--room=10:1"


@dataclass(frozen=True, slots=True)
class Kind:
    """What is trained: the model, its size, and flags beyond the usual ones."""

    model: str
    size: str
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.model, self.size, *self.more))


_TINY = (Kind("v2", "tiny"), Kind("v3", "tiny"), Kind("v4", "tiny", ("--carry-state",)))
_ALL = (
    *_TINY, Kind("v4", "tiny", ("--dropout", "0.2")), Kind("v4", "tiny", ("--carry-state", TIGHT)),
    Kind("v3", "tiny", (TIGHT,)), Kind("v4", "tiny", ("--carry-state", "--attention-every", "2")),
    Kind("v2", "small"), Kind("v3", "small"), Kind("v4", "small"), Kind("v4", "small", ("--carry-state",)),
)  # fmt: skip


def attack(seed: int, share: float = 1.0) -> Tally:
    """End runs at each of their steps, once by a kill and once by a stop.

    Args:
        seed: of the points within the steps.
        share: 1 for each step of each kind of run; less for a sample of the steps of the three tiny models.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="exactness-") as named:
        place = Path(named)
        _write_text(place / "text")
        with forked_trainer(place / "tokens", _ARMED) as trainer:
            book = _Book(place, trainer)
            for kind in _ALL if share >= 0.2 else _TINY:
                for way in _ways(chance, share):
                    book.live_through(kind, way)
    failures = tuple(f"{line} (seed {seed})" for line in book.failures)
    return Tally("exactness", book.counts["SIGKILLs"] + book.counts["stops"], failures, dict(book.counts))


def _ways(chance: random.Random, share: float) -> Iterator[list[tuple[int, str]]]:
    """The steps at which a run is ended, and how: all by kills, then all by stops; of a small share a mixture."""
    kills = [(step, chance.choice(_kills(step))) for step in range(1, STEPS + 1)]
    stops = [(step, chance.choice(dying.STOPS)) for step in range(1, STEPS)]
    if share >= 1:
        yield from (kills, stops)
        return
    wanted = max(2, round(STEPS * share))
    steps = sorted(chance.sample(range(2, STEPS), wanted))
    yield [(step, dict(kills if number % 3 else stops)[step]) for number, step in enumerate(steps)]


def _kills(step: int) -> Sequence[str]:
    found = dying.KILLS
    found += dying.KILLS_OF_A_SAVE if step % SAVES == 0 and step < STEPS else ()
    return found + (dying.KILLS_OF_AN_EVALUATION if step % EVALUATIONS == 0 else ())


def _write_text(folder: Path) -> None:
    """Two short documents: an epoch of `--carry-state` has some ten steps."""
    folder.mkdir()
    chance = random.Random(1)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("".join(chance.choice("to be or not, ") for _ in range(1_600)))


@dataclass(slots=True)
class _Book:
    """What is known between the lives."""

    place: Path
    trainer: ForkedTrainer
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unbroken: dict[Kind, tuple[Mapping[str, Tensor], dict[int, float]]] = field(default_factory=dict)

    def live_through(self, kind: Kind, way: Sequence[tuple[int, str]]) -> None:
        """One run, ended at these points and completed at last."""
        if kind not in self.unbroken:
            self.unbroken[kind] = self._completed(kind, self.place / f"unbroken-{len(self.unbroken)}")
        directory = self.place / f"run-{self.counts['runs']}"
        self.counts["runs"] += 1
        for step, how in way:
            code = self._life(kind, directory, f"{dying.FLAG}{how}:{step}")
            self.counts["stops" if how in dying.STOPS else "SIGKILLs"] += 1
            if code != (130 if how in dying.STOPS else -9):
                self.failures.append(f"{kind}: {how} {step}: ended with {code}: {self._said()}")
                return
        tensors, losses = self._completed(kind, directory)
        expected, told = self.unbroken[kind]
        wrong = sorted(
            name for name in expected if name not in tensors or not torch.equal(tensors[name], expected[name])
        )
        if wrong or tensors.keys() != expected.keys() or losses != told:
            late = min((step for step in told if losses.get(step) != told[step]), default=STEPS)
            self.failures.append(
                f"{kind}: {len(wrong)} tensors differ ({wrong[:2]}), the loss from step {late} on: {way}"
            )
        self.counts["tensors compared"] += len(expected)

    def _completed(self, kind: Kind, directory: Path) -> tuple[Mapping[str, Tensor], dict[int, float]]:
        code = self._life(kind, directory)
        assert code == 0, f"{kind}: the last life ended with {code}: {self._said()}"
        return outcome(directory)

    def _life(self, kind: Kind, directory: Path, *more: str) -> int | None:
        words = ("train", kind.model, "--size", kind.size, *_FLAGS, *kind.more, "--data-dir", str(self.place / "text"))
        self.trainer.start((*words, "--output-dir", str(directory), *more), self.place / "output")
        deadline = time.monotonic() + _LONGEST_LIFE_S
        while (code := self.trainer.ended()) is None and time.monotonic() < deadline:
            time.sleep(0.005)  # else the watcher takes a core of the trainer's
        return code

    def _said(self) -> str:
        return (self.place / "output").read_text(errors="replace")[-600:]


def outcome(directory: Path) -> tuple[Mapping[str, Tensor], dict[int, float]]:
    """All tensors at the end, and the losses of each step, on trained and on held-out text; negative for the latter."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["loss"] is not None}
    held_out = {-row["step"]: row["val_ce"] for row in rows if row.get("val_ce") is not None}
    return load(directory / f"checkpoint_{STEPS}.safetensors").snapshot.tensors, losses | held_out


def less_memory(kind: Kind) -> tuple[float, float]:
    """How far a run whose memory takes one sequence at a time from step 10 on is from one that had memory enough.

    Returns:
        The distance of the weights as a share of their norm, and the largest difference of a loss in nats.
    """
    with tempfile.TemporaryDirectory(prefix="exactness-") as named:
        _write_text(Path(named, "text"))
        with forked_trainer(Path(named, "tokens"), _ARMED) as trainer:
            book = _Book(Path(named), trainer)
            roomy, told = book._completed(kind, Path(named, "roomy"))
            tight, said = book._completed(replace(kind, more=(*kind.more, TIGHT)), Path(named, "tight"))
    names = [name for name in roomy if name.startswith("model.")]
    apart, norm = (
        math.sqrt(sum(float(one.double().square().sum()) for one in tensors))
        for tensors in ([roomy[name] - tight[name] for name in names], [roomy[name] for name in names])
    )
    return apart / norm, max(abs(told[step] - said[step]) for step in told)
