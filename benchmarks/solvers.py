"""Who solves the puzzles, and how each is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

LENGTH, LENGTHS = 64, (64, 256, 1024)  # trained at, tested at
ROWS, TEST_ROWS = 16, 128  # of a step at the full length, and more while sheets are shorter; of a test
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Solver:
    """A model, and how it is trained.

    Args:
        name: in file names.
        title: for people.
        steps: of the optimizer.
        rate: its highest one.
        hidden: D.
        layers: L.
        oscillators: N; 0 makes it a GPT.
        shape: more of v4's shape, as `kssm.config.ModelConfig` has it.
        std: of the initial matrices.
        joins: of those matrices of v4 that write into the residual stream; 0 as the model has them.
        positions: whether a GPT has learned positions.
        taps: factor of the initial weights of v4's convolution, but for the present token's; at 0 a symbol's turn does
            not depend on the symbols before it.
        smoothing: the share of certainty that training does not ask for. An answer that is right by any margin would
            else teach nothing more, and what has drifted a little at 64 has drifted away at 1,024.
        first: length of the first sheets, a multiple of 8; it grows to the full one in the first half of the steps.
    """

    name: str
    title: str
    steps: int
    rate: float
    hidden: int = 64
    layers: int = 1
    oscillators: int = 32
    shape: Mapping[str, Any] = field(default_factory=dict)
    std: float = 0.1
    joins: float = 0.0
    positions: bool = True
    smoothing: float = 0.0
    taps: float = 1.0
    first: int = 8


@dataclass(frozen=True, slots=True)
class Job:
    """A solver, a puzzle and a seed of initial values and sheets."""

    puzzle: str
    solver: Solver
    seed: int

    @property
    def name(self) -> str:
        return f"{self.puzzle.replace(' ', '-')}.{self.solver.name}.{self.seed}"

    def facts(self) -> dict[str, Any]:
        """All that decides what comes of it, as JSON gives it back."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del facts["solver"]["title"]
        return facts


# Faithful oscillators, and a coupling that begins next to nothing: see docs/tracking.md for what happens without.
_FAITHFUL = {"keeps": 0.999999, "coupling_bias": -6.0}


def _counters(steps: int) -> tuple[Solver, ...]:
    v4 = Solver("v4", "v4", steps, 1e-3, shape=_FAITHFUL, smoothing=0.1, taps=0.0)
    return (
        v4,
        replace(v4, name="v4-uncoupled", title="v4 without coupling", shape={**_FAITHFUL, "coupled": False}),
        replace(v4, name="v4-unrotated", title="v4 without rotation", shape={**_FAITHFUL, "rotating": False}),
        replace(v4, name="gpt", title="GPT", oscillators=0, shape={}, std=0.02, taps=1.0),
    )


def _recallers(steps: int) -> tuple[Solver, ...]:
    hybrid = Solver("hybrid", "hybrid", steps, 3e-3, layers=2, shape={"attention_every": 2}, joins=0.05, first=24)
    return (
        hybrid,
        replace(hybrid, name="v4", title="v4", layers=1, shape=_FAITHFUL),
        replace(hybrid, name="gpt", title="GPT, two layers", oscillators=0, shape={}, std=0.02, joins=0.0),
    )


SOLVERS = {"sum mod 5": _counters(1000), "parity": _counters(800), "recall": _recallers(1000)}
# First those that the aims are about, so that a run that is cut short has them.
JOBS = [
    Job(puzzle, solvers[rank], seed)
    for rank in range(max(map(len, SOLVERS.values())))
    for seed in SEEDS
    for puzzle, solvers in SOLVERS.items()
    if rank < len(solvers)
]
