"""The coupled scan of one v4 layer, forward and backward, against the loop that defines it.

    python3 -m benchmarks.scan

One thread, by interleaved pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.measure import Row, interleaved, tell
from kssm import scan
from kssm.config import ScanName
from kssm.scan_maker import Scan, ScanShape

SHAPE = ScanShape(64, 16)
SIZES = ((12, 64), (4, 256), (1, 1024))  # sequences and positions
AIMS: dict[ScanName, int] = {"chunked": 2, "native": 40}


def both_ways(maker: Scan, B: int, S: int) -> Callable[[], object]:
    """A scan and its gradients by one maker."""
    draw, N = torch.Generator().manual_seed(0), SHAPE.oscillators
    p_BSP, start_BF = torch.randn(B, S, SHAPE.width, generator=draw), torch.randn(B, 2 * N, generator=draw)
    beta_N, omega_N = torch.linspace(-0.85, 5.3, N), torch.linspace(-3, 3, N)
    d_y_BSF = torch.randn(B, S, 2 * N, generator=draw)

    def run() -> object:
        found = maker.forward(p_BSP, beta_N, omega_N, start_BF, SHAPE)
        return maker.backward(p_BSP, beta_N, omega_N, start_BF, found.z_BSF, d_y_BSF, SHAPE)

    return run


def row(name: ScanName, aim: int, B: int, S: int) -> Row:
    """One maker at one size."""
    maker, loop = scan.choose("cpu", name)[0], scan.choose("cpu", "loop")[0]
    pair = interleaved(both_ways(loop, B, S), both_ways(maker, B, S), rounds=11)
    return Row(
        f"scan of one layer, {B} x {S} tokens of {SHAPE.oscillators} oscillators, forward + backward, {maker.name}",
        f"{pair.plain * 1e3:.0f} ms",
        f"{pair.ours * 1e3:.2f} ms",
        f"{pair.ratio:.1f}x",
        f">= {aim}x",
        pair.ratio >= aim,
    )


def main() -> None:
    """Both makers of a CPU at each size."""
    torch.set_num_threads(1)
    tell([row(name, aim, *size) for name, aim in AIMS.items() for size in SIZES])


if __name__ == "__main__":
    main()
