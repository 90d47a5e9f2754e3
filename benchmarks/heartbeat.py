"""What the guard costs per training step: one heartbeat.

python3 -m benchmarks.heartbeat
"""

from __future__ import annotations

import tempfile
import time

import solorun

ROUNDS = 20_000


def main() -> None:
    """Median and 99th percentile of `run.progress` and of `run.should_stop`."""
    with tempfile.TemporaryDirectory() as place, solorun.hold(place) as run:
        times = []
        for step in range(ROUNDS):
            began = time.perf_counter()
            run.progress(step, ROUNDS)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            _ = run.should_stop
        asked = (time.perf_counter() - began) / ROUNDS
    times.sort()
    print(
        f"run.progress p50 {times[ROUNDS // 2] * 1e6:.2f} us, p99 {times[int(ROUNDS * 0.99)] * 1e6:.2f} us; "
        f"run.should_stop {asked * 1e9:.0f} ns (aim: at most 5 us a step)"
    )


if __name__ == "__main__":
    main()
