"""A training step of the medium v3, ours against the formulas written the direct way: time and peak memory.

    python3 -m benchmarks.step [VOCABULARY ...]

Each way is a process of its own, as a run is; the two take steps in turn, on the same text, and tell their peak memory
at the end. The plain one is `benchmarks.plain_v3` with torch's own AdamW; ours is the trainer's stepper with its
defaults. B 4, S 512, D 384, 6 layers, 192 oscillators, 32 harmonics.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, own_peak_mib, tell

B, S = 4, 512
WARM_UP, ROUNDS = 1, 5
AIMS = {8_192: (3.0, 0.55), 100_277: (2.5, 0.30)}


def batch(vocabulary: int, step: int) -> NDArray[np.int64]:
    """Token ids [B, S + 1], the frequent ones as frequent as in text (Zipf)."""
    ranks = np.random.default_rng(step).zipf(1.1, size=(B, S + 1))
    return (ranks % vocabulary).astype(np.int64)


def plain_way(vocabulary: int, std: float) -> Callable[[int], float]:
    """Steps of the direct way; each gives its loss."""
    import torch

    from benchmarks.plain_v3 import PlainV3

    torch.manual_seed(0)
    model = PlainV3(vocabulary, D=384, L=6, N=192, H=32, std=std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    noise = torch.Generator()

    def step(number: int) -> float:
        optimizer.zero_grad()
        noise.manual_seed(number)
        loss, _, _ = model.loss(torch.from_numpy(batch(vocabulary, number)), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def our_way(vocabulary: int, std: float) -> Callable[[int], float]:
    """Steps of the trainer; each gives its loss."""
    from kssm.config import model_config, train_config
    from kssm.device import choose, prepare_cpu
    from kssm.models import build
    from kssm.step import Stepper

    prepare_cpu()
    config = train_config("v3", "medium", batch_size=B, gradient_accumulation=1, seq_length=S, lr=1e-4, warmup_steps=0)
    model = build(model_config("v3", "medium", vocabulary, published=std == 1), seed=0)
    stepper = Stepper(model, config, choose("cpu"), lambda number: batch(vocabulary, number), log=lambda _line: None)
    return lambda number: stepper.step(number).loss


@dataclass(frozen=True, slots=True)
class Taken:
    """What one way took: seconds of each step, and its peak memory in MiB."""

    seconds: list[float]
    peak: float


def both(vocabulary: int, std: float) -> tuple[Taken, Taken]:
    """Plain and ours, in turn."""
    as_usual = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    surroundings = {"plain": as_usual, "ours": {**as_usual, "OMP_WAIT_POLICY": "PASSIVE"}}  # as `kssm train` sets it
    command = [sys.executable, "-m", "benchmarks.step", str(vocabulary), "--std", str(std), "--way"]
    ways = [
        subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for way, environment in surroundings.items()
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(WARM_UP + ROUNDS):
        for way, times in zip(ways, seconds, strict=True):
            assert way.stdin is not None
            assert way.stdout is not None
            way.stdin.write("step\n")
            way.stdin.flush()
            times.append(float(way.stdout.readline()))
    peaks = [float(way.communicate()[0]) for way in ways]
    plain, ours = (Taken(times[WARM_UP:], peak) for times, peak in zip(seconds, peaks, strict=True))
    return plain, ours


def serve(way: Callable[[int], float]) -> None:
    """Take a step for each line of the input; at its end tell the peak memory."""
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        way(number)
        print(time.perf_counter() - began, flush=True)
    print(own_peak_mib())


def rows(vocabulary: int, std: float) -> list[Row]:
    """Time and memory of a step with this vocabulary."""
    plain, ours = both(vocabulary, std)
    speed, memory = AIMS.get(vocabulary, (1.0, 1.0))
    ratio = statistics.median(a / b for a, b in zip(plain.seconds, ours.seconds, strict=True))
    what = f"train step, medium v3, V {vocabulary:,}, embedding std {std:g}"
    middle = [f"{statistics.median(taken.seconds) * 1e3:,.0f} ms" for taken in (plain, ours)]
    share = ours.peak / plain.peak
    return [
        Row(what, middle[0], middle[1], f"{ratio:.2f}x", f">= {speed}x", ratio >= speed),
        Row(
            f"{what}: peak memory", f"{plain.peak:,.0f} MiB", f"{ours.peak:,.0f} MiB", f"{share:.2f}x",
            f"<= {memory}x", share <= memory,
        ),
    ]  # fmt: skip


def main() -> None:
    """Both vocabularies of the issue, with the embedding as ours and as published."""
    parser = argparse.ArgumentParser()
    parser.add_argument("vocabularies", type=int, nargs="*", default=list(AIMS))
    parser.add_argument("--std", type=float, action="append", help="of the embedding: 0.02 is ours, 1 as published")
    parser.add_argument("--way", choices=("plain", "ours"))
    parser.add_argument("--rows", help="see benchmarks.measure.tell")
    said = parser.parse_args()
    stds = said.std or [0.02, 1.0]
    if said.way:
        serve((plain_way if said.way == "plain" else our_way)(said.vocabularies[0], stds[0]))
        return
    tell([row for vocabulary in said.vocabularies for std in stds for row in rows(vocabulary, std)])


if __name__ == "__main__":
    main()
