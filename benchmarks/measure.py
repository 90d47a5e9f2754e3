"""Two ways of one job against each other: interleaved, medians, and peak memory by a fresh process each.

Machines are shared: a pair of runs, one right after the other, feels the same neighbours, and the median of the pairs'
ratios stays true where no time does.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians of two ways of one job.

    Args:
        plain: seconds of the way to compare with.
        ours: seconds of ours.
        ratio: median over the pairs of plain / ours; above 1 means ours is faster.
        rounds: how many pairs.
    """

    plain: float
    ours: float
    ratio: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table in docs/performance.md.

    Args:
        what: the job, with its sizes.
        plain: what is compared with, and its figure.
        ours: our figure.
        ratio: the measured figure that the aim is about, as people read it: "3.1x", "0.52x memory", "4 us".
        aim: what was wanted, in the same form.
        met: whether it was reached.
    """

    what: str
    plain: str
    ours: str
    ratio: str
    aim: str
    met: bool


def interleaved(
    plain: Callable[[], object],
    ours: Callable[[], object],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Pair:
    """Time two calls in turn.

    Args:
        plain: one run of the way to compare with.
        ours: one run of ours.
        rounds: pairs that count.
        warm_up: pairs before them that do not.
        clock: of seconds; `time.process_time` where others use the machine as well.
    """
    times: list[tuple[float, float]] = []
    for number in range(warm_up + rounds):
        pair = (_seconds(plain, clock), _seconds(ours, clock))
        if number >= warm_up:
            times.append(pair)
    first, second = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    return Pair(statistics.median(first), statistics.median(second), ratio, rounds)


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def peak_mib(module: str, *arguments: str) -> float:
    """Peak resident memory of `python3 -m module arguments`, a fresh process, in MiB; its output is thrown away."""
    command = [sys.executable, "-m", "benchmarks.measure", module, *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(ended.stdout.splitlines()[-1])


def own_peak_mib() -> float:
    """Peak resident memory of this process so far, MiB."""
    # Linux hands getrusage's peak on from the process that started this one; the kernel's own mark begins with exec.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10  # type: ignore[index] # always there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def tell(rows: Sequence[Row]) -> None:
    """Print rows; with `--rows FILE` on the command line append them there too, a JSON object each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path)
    target = parser.parse_known_args()[0].rows
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"{row.what}: {row.plain}; ours {row.ours}; {row.ratio} (aim {row.aim}: {verdict})")
    if target is not None:
        with target.open("a") as stream:
            stream.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    print(own_peak_mib())
