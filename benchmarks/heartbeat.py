"""What the guard costs per training step: `run.progress` and `run.should_stop`, beside the bare write of a heartbeat.

python3 -m benchmarks.heartbeat
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import solorun
from benchmarks.measure import Row, tell

ROUNDS = 50_000
LINE = b"x" * 256
AIM_US = 5.0


def main() -> None:
    """Median and 99th percentile of both calls together, and of one `pwrite` of as many bytes, in turn."""
    with tempfile.TemporaryDirectory() as top:
        os.environ["SOLORUN_STATE"] = f"{top}/state"  # the registry of real runs must not learn of this one
        steps, writes = measure(Path(top))
    steps.sort()
    writes.sort()
    p50, p99 = steps[ROUNDS // 2] * 1e6, steps[int(ROUNDS * 0.99)] * 1e6
    bare = writes[ROUNDS // 2] * 1e6
    tell(
        [
            Row(
                "guard per training step: progress + should_stop",
                f"one pwrite of 256 bytes {bare:.1f} us",
                f"p50 {p50:.1f} us, p99 {p99:.1f} us",
                f"{p50:.1f} us",
                f"<= {AIM_US:g} us",
                p50 <= AIM_US,
            )
        ]
    )


def measure(top: Path) -> tuple[list[float], list[float]]:
    """Seconds of every step, and of every bare write."""
    steps, writes = [], []
    beside = os.open(top / "beside", os.O_RDWR | os.O_CREAT)
    with solorun.hold(top / "results") as run:
        for step in range(ROUNDS):
            began = time.perf_counter()
            run.progress(step, ROUNDS)
            _ = run.should_stop
            between = time.perf_counter()
            os.pwrite(beside, LINE, 0)
            steps.append(between - began)
            writes.append(time.perf_counter() - between)
    os.close(beside)
    return steps, writes


if __name__ == "__main__":
    main()
