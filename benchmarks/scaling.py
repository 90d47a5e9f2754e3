"""Time and peak memory of a training step of v3 against S, V, N, H and D, each alone, around one middle shape.

    python3 -m benchmarks.scaling [S] [V] [N] [H] [D] [--points FILE]

The trainer's own way: `kssm.models.build` and `kssm.step.Stepper`. Every point is a fresh process, two layers deep; its
time is the median of a few steps after the first, its memory the whole process's peak, some 300 MiB of which are Python
and torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.curves import Curve
from benchmarks.measure import peak_mib
from kssm.config import model_config, train_config
from kssm.device import Compute
from kssm.models import build
from kssm.step import Stepper, allocate_state

MIDDLE = {"B": 4, "S": 512, "D": 384, "L": 2, "N": 192, "H": 32, "V": 8192}
AXES = {
    "S": (128, 256, 512, 1024, 2048),
    "V": (1_000, 4_000, 8_192, 32_768, 100_277),
    "N": (48, 96, 192, 384, 768),
    "H": (8, 16, 32, 64, 128),
    "D": (128, 192, 256, 384, 512, 768),
}
STEPS, SECONDS = 4, 12


@dataclass(frozen=True, slots=True)
class Point:
    """A step's cost at one size of one axis, the others as in MIDDLE: milliseconds, and the process's peak in MiB."""

    axis: str
    size: int
    ms: float
    mib: float


def step_ms(shape: dict[str, int]) -> float:
    """Median milliseconds of a step after the first."""
    torch.set_flush_denormal(True)  # as the trainer does
    model = build(
        model_config(
            "v3", "medium", shape["V"], hidden=shape["D"], layers=shape["L"], oscillators=shape["N"],
            harmonics=shape["H"], positions=max(1024, shape["S"]),
        ),
        seed=1,
    )  # fmt: skip
    config = train_config("v3", "medium", batch_size=shape["B"], gradient_accumulation=1, seq_length=shape["S"])
    ids = np.random.default_rng(0).integers(shape["V"], size=(shape["B"], shape["S"] + 1))
    stepper = Stepper(model, config, Compute(torch.device("cpu")), lambda _step: ids, print)
    allocate_state(stepper.optimizer)
    stepper.step(0)
    times = [stepper.step(1).seconds]
    while len(times) < STEPS and sum(times) < SECONDS:
        times.append(stepper.step(1 + len(times)).seconds)
    return statistics.median(times) * 1e3


def measure(shape: dict[str, int]) -> tuple[float, float]:
    """Milliseconds and MiB of a step, by a fresh process."""
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place, "ms")
        mib = peak_mib("benchmarks.scaling", "--alone", json.dumps(shape), str(answer))
        return float(answer.read_text()), mib


def curves(points: list[Point], axis: str) -> tuple[Curve, Curve]:
    """Time and memory against an axis."""
    its = [point for point in points if point.axis == axis]
    sizes = tuple(float(point.size) for point in its)
    return (
        Curve(axis, "ms a step", sizes, tuple(point.ms for point in its)),
        Curve(axis, "MiB at the peak", sizes, tuple(point.mib for point in its)),
    )


def main() -> None:
    """Measure the axes that are named, or all; print points and what the curves do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"of {', '.join(AXES)}")
    parser.add_argument("--points", type=Path, help="where to write them as JSON")
    parser.add_argument("--rows", help="as other benchmarks have it; nothing here has an aim")
    parser.add_argument("--alone", nargs=2, metavar=("SHAPE", "FILE"), help="one point in this process")
    wanted = parser.parse_args()
    if wanted.alone:
        Path(wanted.alone[1]).write_text(str(step_ms(json.loads(wanted.alone[0]))))
        return
    points: list[Point] = []
    for axis in wanted.axes or AXES:
        for size in AXES[axis]:
            # The middle too, once for each axis: one bad moment of the machine would bend all curves alike.
            points.append(Point(axis, size, *measure({**MIDDLE, axis: size})))
            print(f"{axis} {size:7,d}  {points[-1].ms:8,.0f} ms  {points[-1].mib:6,.0f} MiB", flush=True)
        for curve in curves(points, axis):
            print(f"  {curve.told()}")
    if wanted.points:
        wanted.points.write_text(json.dumps([asdict(point) for point in points]))


if __name__ == "__main__":
    main()
