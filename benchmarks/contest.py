"""What the comparison of models still has to train, from what is finished. Pure but for reading result files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import SEEDS, TUNING_SEED, Contestant, tuning

_GROWS = 2
"""How many rates may be added to a grid whose best one is the outermost."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training: a process of its own, and one result file."""

    contestant: Contestant
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its result file, without the ending."""
        return f"{self.contestant.name}-lr{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Point:
    """A look at a model in training.

    Args:
        step: optimizer steps so far.
        tokens: trained on so far.
        cpu_s: CPU seconds of training so far, looks like this one not counted.
        train: mean cross-entropy of the batches since the last look.
        validation: on every fourth block of the held-out text.
        order_parameter: R of each layer, there.
        coupling: k of each layer, there.
    """

    step: int
    tokens: int
    cpu_s: float
    train: float
    validation: float
    order_parameter: tuple[float, ...]
    coupling: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Args:
        facts: of the contestant, so that a result of another shape is not taken for this one's.
        rate: peak learning rate.
        seed: of initial values and data order.
        parameters: of the model.
        cpu_s: CPU seconds of training.
        validation: whole held-out text in blocks as long as the GPT's positions; None where training broke.
        long: the same in long blocks; None for a model that cannot.
        carried: the same with the state carried through the whole text; None for a model that has none.
        points: along the way; of the tuning seed only the last.
        machine: on which it was trained.
        failed: why training broke; empty where it did not.
    """

    facts: dict[str, Any]
    rate: float
    seed: int
    parameters: int
    cpu_s: float
    validation: float | None
    long: float | None
    carried: float | None
    points: tuple[Point, ...]
    machine: str = ""
    failed: str = ""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Outcome:
        points = tuple(
            Point(**{**point, "order_parameter": tuple(point["order_parameter"]), "coupling": tuple(point["coupling"])})
            for point in facts["points"]
        )
        return cls(**{**facts, "points": points})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def loss(self) -> float:
        """For choosing a rate: a training that broke is the worst."""
        return math.inf if self.validation is None else self.validation


class Results:
    """The finished jobs in a folder.

    Args:
        folder: with a JSON file per job; need not be there.
        kept: losses by rate that are known although their jobs are gone, by contestant.
    """

    def __init__(self, folder: Path, kept: Mapping[str, Mapping[float, float]] | None = None) -> None:
        self.folder = folder
        self._kept = kept or {}
        self._read: dict[str, Outcome] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def of(self, job: Job) -> Outcome | None:
        """What came of a job; None where it has not finished, or was of another shape."""
        if job.name in self._read:
            return self._read[job.name]
        try:
            found = Outcome.from_json(json.loads(self.path(job.name).read_text()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if found.facts != job.contestant.facts():
            return None
        self._read[job.name] = found
        return found

    def machines(self) -> set[str]:
        """On which the jobs that were asked for were trained."""
        return {outcome.machine for outcome in self._read.values() if outcome.machine}

    def grid(self, contestant: Contestant) -> dict[float, float]:
        """The loss at each rate tried so far."""
        tried = dict(self._kept.get(contestant.name, {}))
        while waiting := [rate for rate in rates_to_try(contestant.rates, tried) if rate not in tried]:
            found = {rate: self.of(Job(tuning(contestant), rate, TUNING_SEED)) for rate in waiting}
            told = {rate: outcome.loss for rate, outcome in found.items() if outcome is not None}
            tried |= told
            if len(told) < len(waiting):
                break
        return tried


def rates_to_try(start: Sequence[float], tried: Mapping[float, float]) -> list[float]:
    """The rates that are still to be tried: first the grid, then beyond it while the best is the outermost."""
    if missing := [rate for rate in start if rate not in tried]:
        return missing
    if len(start) < 2 or len(tried) >= len(start) + _GROWS:
        return []
    ordered = sorted(tried)
    best = min(ordered, key=lambda rate: tried[rate])
    beside = {ordered[0]: ordered[1], ordered[-1]: ordered[-2]}.get(best)
    return [] if beside is None else [float(f"{best * best / beside:.2g}")]


def chosen_rate(contestant: Contestant, everyone: Sequence[Contestant], results: Results) -> float | None:
    """The best rate of a contestant, or of the one whose rate it takes; None while that is not known."""
    owner = (
        next((one for one in everyone if one.name == contestant.like), contestant) if contestant.like else contestant
    )
    tried = results.grid(owner)
    if not tried or rates_to_try(owner.rates, tried):
        return None
    return min(tried, key=lambda rate: tried[rate])


def wanted(chosen: Sequence[Contestant], results: Results, everyone: Sequence[Contestant]) -> Iterator[Job]:
    """The jobs of some contestants that can be done now and are not, the most wanted first."""
    for contestant in chosen:
        rate = chosen_rate(contestant, everyone, results)
        if rate is not None:
            jobs = [Job(contestant, rate, seed) for seed in SEEDS]
        else:
            rates = rates_to_try(contestant.rates, results.grid(contestant)) if contestant.rates else []
            jobs = [Job(tuning(contestant), one, TUNING_SEED) for one in rates]
        yield from (job for job in jobs if results.of(job) is None)
