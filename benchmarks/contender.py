"""One job of the comparison of models: train a contestant, look at it along the way, write its result file.

    python3 -m benchmarks.contender NAME RATE SEED --text FILE --into FILE [--steps N] [--speed RATIO]

One thread; CPU seconds are those of the optimizer steps, their data included and the looks not. It ends when the
process that began it is gone, so that nobody trains the same twice.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import characters
from benchmarks.contest import Outcome, Point
from benchmarks.contestants import LENGTH, LONG, STEPS, TUNING_SEED, Contestant, named
from benchmarks.machine import described

if TYPE_CHECKING:
    from benchmarks.learner import Learner

_LOOKS = 10
"""Along a run, its end among them."""

_EVERY = 4
"""Along the way a look reads every fourth block; the end is told of all."""


def looks(steps: int, *, tuning: bool) -> set[int]:
    """After which steps to look: close together at first; of a run that only tunes the rate, at its end."""
    if tuning:
        return {steps}
    apart = max(1, steps // _LOOKS)
    return {*range(steps, 0, -apart), apart // 2} - {0}


def trained(contestant: Contestant, rate: float, seed: int, text: characters.Characters) -> Outcome:
    """Train, and tell what came of it."""
    from benchmarks.learner import learner, parameters, training
    from benchmarks.validation import carried, in_blocks
    from kssm.errors import NotFinite

    own = learner(contestant, training(contestant, rate, seed), text.train, text.alphabet)
    points: list[Point] = []
    count, facts = parameters(own), contestant.facts()
    try:
        points.extend(_training(own, contestant, text, tuning=seed == TUNING_SEED))
    except NotFinite as error:
        return Outcome(facts, rate, seed, count, 0.0, None, None, None, (), failed=str(error))
    remembers = getattr(own.model, "remembers", False)
    whole = in_blocks(own.read, text.validation, LENGTH).loss
    long = in_blocks(own.read, text.validation, LONG).loss if remembers else None
    through = carried(own.read, text.validation, LONG).loss if remembers else None
    rounded = [None if loss is None else round(loss, 5) for loss in (whole, long, through)]
    return Outcome(facts, rate, seed, count, points[-1].cpu_s, *rounded, tuple(points), described())


def _training(own: Learner, contestant: Contestant, text: characters.Characters, *, tuning: bool) -> Iterator[Point]:
    from benchmarks.learner import cpu_seconds
    from benchmarks.validation import in_blocks

    when, parent = looks(contestant.steps, tuning=tuning), os.getppid()
    spent, losses = 0.0, list[float]()
    for step in range(contestant.steps):
        spent += cpu_seconds(lambda number=step: losses.append(own.step(number)))
        if os.getppid() != parent:
            sys.exit("whoever began this job is gone; it is trained again by whoever begins it again")
        if step + 1 in when:
            found = in_blocks(own.read, text.validation, LENGTH, _EVERY)
            yield Point(
                step + 1, (step + 1) * contestant.rows * contestant.length, round(spent, 2),
                round(statistics.fmean(losses), 4), round(found.loss, 5),
                *(tuple(round(value, 4) for value in layers) for layers in (found.order_parameter, found.coupling)),
            )  # fmt: skip
            losses.clear()


def main() -> None:
    """One job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("rate", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--speed", type=float, default=1.0, help="of the contestant that it is like, against the GPT's")
    said = parser.parse_args()
    import torch

    from kssm.atomicfile import replacing
    from kssm.device import prepare_cpu

    torch.set_num_threads(1)
    prepare_cpu()
    outcome = trained(named(said.name, said.speed, said.steps), said.rate, said.seed, characters.read(said.text))
    with replacing(said.into) as file:
        file.write(outcome.to_json().encode())


if __name__ == "__main__":
    main()
