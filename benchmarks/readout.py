"""The readout Z_1..Z_32 of one layer, forward and backward, against the formula written the direct way.

    python3 -m benchmarks.readout

Time by interleaved pairs; memory by a fresh process for each way, less that of a process that does nothing with the
same phases.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.measure import Row, interleaved, peak_mib, tell
from benchmarks.plain_v3 import order_parameters as plain
from kssm import readout

SHAPE, H = (4, 512, 192), 32
AIMS = {"portable": 5, "native": 60}


def phases() -> tuple[Tensor, Tensor]:
    """Phases [B, S, N] and a gradient of the readings [B, S, 3H]."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(SHAPE, generator=generator, requires_grad=True)
    return theta, torch.randn(*SHAPE[:2], 3 * H, generator=generator)


def run(way: str, theta: Tensor, direction: Tensor) -> None:
    """Readings and gradient by one way."""
    theta.grad = None
    if way == "plain":
        torch.cat(plain(theta, H), -1).backward(direction)
    elif way == "nothing":
        theta.sum().backward()
    else:
        readout.order_parameters(theta, H).backward(direction)


def rows(way: str, aim: int) -> list[Row]:
    """Time and memory of one of our ways."""
    name = readout.choose("cpu", way)[0].name  # type: ignore[arg-type] # a name of AIMS
    theta, direction = phases()
    pair = interleaved(lambda: run("plain", theta, direction), lambda: run(way, theta, direction), rounds=11)
    nothing, by_plain, by_ours = (peak_mib("benchmarks.readout", "--alone", each) for each in ("nothing", "plain", way))
    memory = f"{by_plain - nothing:.0f} MiB", f"{by_ours - nothing:.1f} MiB"
    return [
        Row(
            f"readout Z_1..Z_{H}, one layer, forward + backward, {name}",
            f"{pair.plain * 1e3:.0f} ms, {memory[0]}",
            f"{pair.ours * 1e3:.1f} ms, {memory[1]}",
            f"{pair.ratio:.1f}x",
            f">= {aim}x",
            pair.ratio >= aim,
        )
    ]


def main() -> None:
    """Both ways that a CPU has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", choices=("nothing", "plain", *AIMS), help="one way once, for its memory")
    alone = parser.parse_known_args()[0].alone
    if alone:
        if alone in AIMS:
            readout.choose("cpu", alone)
        run(alone, *phases())
        return
    tell([row for way, aim in AIMS.items() for row in rows(way, aim)])


if __name__ == "__main__":
    main()
