"""Training tokens per CPU second of a contestant against the GPT's: steps of both in turn, one thread, medians.

python3 -m benchmarks.speed NAME --text FILE --into FILE [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import characters
from benchmarks.contestants import GPT, Contestant, contestants
from benchmarks.measure import interleaved

_STEPS, _ROUNDS = 10, 9


def measured(contestant: Contestant, text: characters.Characters, rounds: int) -> dict[str, float]:
    """`ratio` of tokens per CPU second, above 1 is faster than the GPT; both ways' tokens per CPU second."""
    pair = interleaved(_steps(GPT, text), _steps(contestant, text), rounds, clock=time.process_time)
    gpt, own = (_STEPS * one.rows * one.length for one in (GPT, contestant))
    return {
        "ratio": round(pair.ratio * own / gpt, 3), "gpt": round(gpt / pair.plain), "own": round(own / pair.ours),
        "rounds": pair.rounds,
    }  # fmt: skip


def _steps(contestant: Contestant, text: characters.Characters) -> Callable[[], object]:
    from benchmarks.learner import learner, training

    own = learner(contestant, training(contestant, 1e-3, 0), text.train, text.alphabet)
    numbers = iter(range(contestant.steps))

    def steps() -> None:
        for _ in range(_STEPS):
            own.step(next(numbers))

    return steps


def main() -> None:
    """One contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    said = parser.parse_args()
    import torch

    from kssm.atomicfile import replacing
    from kssm.device import prepare_cpu

    torch.set_num_threads(1)
    prepare_cpu()
    contestant = next(one for one in contestants({}) if one.name == said.name)
    found = {"facts": contestant.facts(), **measured(contestant, characters.read(said.text), said.rounds)}
    with replacing(said.into) as file:
        file.write((json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
