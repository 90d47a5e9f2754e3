"""What the comparison of models found, in one file that is kept: the page can be made from it without the runs."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.characters import Characters
from benchmarks.contest import Job, Outcome, Results, chosen_rate
from benchmarks.contestants import SEEDS, Contestant, contestants
from benchmarks.machine import described
from benchmarks.ngrams import Found, predicted

SUMMARY = Path(__file__).resolve().parent / "results/models.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One of a contestant's runs that count.

    Args:
        seed: of initial values and data order.
        cpu_s: of training: its tokens at the measured speed of the model, see `Pace`; as recorded where there is none.
        validation: in short blocks.
        long: in long blocks.
        carried: as one text.
        points: along the way.
    """

    seed: int
    cpu_s: float
    validation: float | None
    long: float | None
    carried: float | None
    points: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A contestant and what came of it.

    Args:
        name: in file names.
        title: for people.
        kind: see `benchmarks.contestants.Contestant`.
        steps: optimizer steps.
        rows: texts per step.
        length: characters per text.
        parameters: how many numbers it learns.
        grid: (rate, loss) of every rate tried; loss None where training broke.
        rate: of the runs that count; None while it is not known.
        runs: those finished, by seed.
    """

    name: str
    title: str
    kind: str
    steps: int
    rows: int
    length: int
    parameters: int
    grid: tuple[tuple[float, float | None], ...]
    rate: float | None
    runs: tuple[Run, ...]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Standing:
        runs = tuple(Run(**{**run, "points": tuple(run["points"])}) for run in facts["runs"])
        return cls(**{**facts, "grid": tuple((rate, loss) for rate, loss in facts["grid"]), "runs": runs})

    def losses(self, way: str = "validation") -> list[float]:
        """Of each finished run; empty where any broke, or the model cannot be evaluated that way."""
        found = [getattr(run, way) for run in self.runs]
        return [] if None in found else found

    def mean(self, way: str = "validation") -> float | None:
        """Over the seeds; None while one is missing."""
        found = self.losses(way)
        return statistics.fmean(found) if len(found) == len(SEEDS) else None

    def cpu_s(self) -> float | None:
        """CPU seconds of training, mean over the seeds; None while one is missing."""
        return statistics.fmean(run.cpu_s for run in self.runs) if len(self.runs) == len(SEEDS) else None


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything the page tells.

    Args:
        date: of the last change.
        machine: what it was measured on.
        text: the text's digest, characters to learn from and held out, and alphabet.
        ngrams: what tables predict.
        standings: of each contestant that has any result.
        speeds: tokens per CPU second against the GPT's, as `benchmarks.speed` tells them.
        plays: what came of the embedded plays, as `benchmarks.plays` tells it.
    """

    date: str
    machine: str
    text: Mapping[str, Any]
    ngrams: tuple[Found, ...]
    standings: tuple[Standing, ...]
    speeds: Mapping[str, Mapping[str, Any]]
    plays: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, path: Path) -> Summary:
        facts = json.loads(path.read_text())
        facts.pop("schema")
        facts["ngrams"] = tuple(Found(**found) for found in facts["ngrams"])
        facts["standings"] = tuple(Standing.from_json(one) for one in facts["standings"])
        return cls(**{**facts, "plays": tuple(facts["plays"])})

    def write(self, path: Path) -> None:
        """One line for each thing, so that a change can be read as one."""
        facts = {"schema": 1, **asdict(self)}
        lines = []
        for name, value in facts.items():
            if isinstance(value, (list, tuple)) and value:
                rows = ",\n  ".join(json.dumps(one) for one in value)
                lines.append(f' "{name}": [\n  {rows}\n ]')
            else:
                lines.append(f' "{name}": {json.dumps(value)}')
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    def named(self, name: str) -> Standing | None:
        return next((one for one in self.standings if one.name == name), None)

    def of_kind(self, kind: str) -> list[Standing]:
        return [one for one in self.standings if one.kind == kind]

    def grids(self) -> dict[str, dict[float, float]]:
        """The loss at each rate tried, by contestant; infinite where training broke."""
        return {
            one.name: {rate: math.inf if loss is None else loss for rate, loss in one.grid} for one in self.standings
        }

    def ratios(self) -> dict[str, float]:
        """Tokens per CPU second against the GPT's, by contestant."""
        return {name: told["ratio"] for name, told in self.speeds.items()}


def gathered(
    folder: Path,
    text: Mapping[str, Any],
    ngrams: Sequence[Found],
    plays: Sequence[Mapping[str, Any]],
    steps: int,
    kept: Summary | None = None,
) -> Summary:
    """The summary of the jobs that are finished, and of what is kept of others whose jobs are gone."""
    results = Results(folder, kept.grids() if kept else None)
    speeds = {**(kept.speeds if kept else {}), **measured_speeds(folder)}
    everyone = contestants({name: told["ratio"] for name, told in speeds.items()}, steps)
    pace = Pace(speeds)
    standings = [
        found for one in everyone
        if (found := _fuller(_standing(one, everyone, results, pace), kept and kept.named(one.name)))
    ]  # fmt: skip
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    trained_on = " and on ".join(sorted(results.machines())) or described()
    told = f"trained on one thread each on {trained_on}; speeds measured on {described()}"
    machine = kept.machine if kept else told
    return Summary(today, machine, text, tuple(ngrams), tuple(standings), speeds, tuple(plays))


def _fuller(found: Standing | None, kept: Standing | None) -> Standing | None:
    return max((one for one in (kept, found) if one), key=lambda one: len(one.runs), default=None)


class Pace:
    """CPU seconds of training by the speeds that were measured in turns with the GPT, on one machine.

    Trainings run on several machines, and beside each other, which makes their own seconds no measure.

    Args:
        speeds: see `measured_speeds`.
    """

    def __init__(self, speeds: Mapping[str, Mapping[str, Any]]) -> None:
        self._ratios = {"gpt": 1.0, **{name: told["ratio"] for name, told in speeds.items()}}
        self._gpt = statistics.median(told["gpt"] for told in speeds.values()) if speeds else 0.0

    def seconds(self, contestant: Contestant, tokens: int, recorded: float) -> float:
        """For so many tokens of training; those that were recorded where no speed is known."""
        ratio = self._ratios.get(contestant.name, self._ratios.get(contestant.like, 0.0))
        return round(tokens / (self._gpt * ratio), 2) if self._gpt and ratio else recorded


def counted(text: Characters) -> list[Found]:
    """What tables predict of the text's held-out part."""
    parts = text.train, text.validation, text.alphabet
    found = predicted(*parts, range(1, 6), "absolute") + predicted(*parts, range(2, 8), "kneser-ney")
    return [replace(one, loss=round(one.loss, 4)) for one in found]


def measured_speeds(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, of whom it was measured in the present shape."""
    found: dict[str, dict[str, Any]] = {}
    for one in contestants({}):
        try:
            told = json.loads((folder / f"speed-{one.name}.json").read_text())
        except (FileNotFoundError, ValueError):
            continue
        if told.pop("facts", None) == one.facts():
            found[one.name] = told
    return found


def _standing(contestant: Contestant, everyone: Sequence[Contestant], results: Results, pace: Pace) -> Standing | None:
    rate = chosen_rate(contestant, everyone, results)
    grid = tuple(
        (tried, loss if loss < float("inf") else None) for tried, loss in sorted(results.grid(contestant).items())
    )
    found = [] if rate is None else [results.of(Job(contestant, rate, seed)) for seed in SEEDS]
    runs = tuple(_run(outcome, contestant, pace) for outcome in found if outcome is not None)
    counts = [outcome.parameters for outcome in found if outcome is not None]
    if not (grid or runs):
        return None
    return Standing(
        contestant.name, contestant.title, contestant.kind, contestant.steps, contestant.rows, contestant.length,
        counts[0] if counts else 0, grid, rate, runs,
    )  # fmt: skip


def _run(outcome: Outcome, contestant: Contestant, pace: Pace) -> Run:
    points = tuple(
        {**asdict(point), "cpu_s": pace.seconds(contestant, point.tokens, point.cpu_s)} for point in outcome.points
    )
    tokens = contestant.steps * contestant.rows * contestant.length
    return Run(
        outcome.seed,
        pace.seconds(contestant, tokens, outcome.cpu_s),
        outcome.validation,
        outcome.long,
        outcome.carried,
        points,
    )
