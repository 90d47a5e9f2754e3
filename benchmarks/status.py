"""`solorun status` over 1,000 results directories beside the procedure's own script, interleaved; and one directory.

    python3 -m benchmarks.status

The script's work, done as portably as Linux asks: find every lock, cat it, `ps -p` it; for every log when it was last
written and its last three lines. Both are whole commands, started by a shell's means, their output thrown away.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIRECTORIES = 1_000
LIVE = 4
PAIRS = 5
COLD = 21

SCRIPT = """
ps aux | grep -E "train_kssm|python.*kssm" | grep -v grep | grep -v check_training
find "$ROOT" -name training.lock 2>/dev/null | while IFS= read -r lock; do
    echo "! Lock found: $lock"
    PID=$(cat "$lock" 2>/dev/null)
    if ps -p "$PID" > /dev/null 2>&1; then
        echo "   PID $PID is ALIVE"
    else
        echo "   PID $PID is DEAD (stale lock)"
        echo "   Remove with: rm $lock"
    fi
done
for log in "$ROOT"/kssm_*/training.log; do
    if [ -f "$log" ]; then
        echo "$log"
        MODTIME=$(stat -c "%y" "$log")
        echo "   Last modified: $MODTIME"
        tail -3 "$log" | sed 's/^/   /'
    fi
done
"""

TRAINER = """
import sys, time, solorun
with solorun.hold(sys.argv[1]) as run:
    step = 0
    print("holding", flush=True)
    while not run.should_stop and step != int(sys.argv[2]):
        step += 1
        run.progress(step, 1_000_000)
        time.sleep(0.05)
"""


def furnish(root: Path) -> None:
    """A tree as it looks after a year: ended runs with record, heartbeat, journal, log and checkpoints; stale locks."""
    made = root / "kssm_0"
    finished = (
        f"import solorun\nwith solorun.hold({str(made)!r}) as run:\n    run.progress(1, 300); run.progress(2, 300)"
    )
    subprocess.run([sys.executable, "-c", finished], check=True)
    (made / "training.log").write_text("".join(f"step {n}/300 loss 2.5\n" for n in range(300)))
    for step in (100, 200, 300):
        (made / f"checkpoint_{step}.safetensors").write_bytes(b"\0" * 4096)
    for n in range(1, DIRECTORIES):
        place = root / f"kssm_{n}"
        shutil.copytree(made, place)
        if n % 2:
            (place / "training.lock").write_text(f"{4_000_000 + n}\n")


def timed(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Medians of both, and their ratio."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        root = Path(top) / "results"
        root.mkdir()
        # With compiled modules, as an installation has them.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "SOLORUN_STATE": f"{top}/state", "ROOT": str(root)}
        os.environ["SOLORUN_STATE"] = f"{top}/state"
        furnish(root)
        live = [
            subprocess.Popen([sys.executable, "-c", TRAINER, str(root / f"kssm_{2 * n}"), "-1"], stdout=subprocess.PIPE)
            for n in range(1, LIVE + 1)
        ]
        try:
            for child in live:
                assert child.stdout is not None
                child.stdout.readline()
            compare(root, environment)
            cold(root, environment)
        finally:
            for child in live:
                child.terminate()
                child.wait()


def compare(root: Path, environment: dict[str, str]) -> None:
    ours = [sys.executable, "-m", "solorun", "status", str(root)]
    times: tuple[list[float], list[float]] = ([], [])
    timed(ours, environment)
    for _ in range(PAIRS):
        times[0].append(timed(ours, environment))
        times[1].append(timed(["sh", "-c", SCRIPT], environment))
    own, script = (statistics.median(found) for found in times)
    print(
        f"{DIRECTORIES} directories, {LIVE} of them live: solorun status {own * 1e3:.0f} ms, "
        f"the script {script * 1e3:.0f} ms, ratio {script / own:.0f} (aim: at least 60)"
    )


def cold(root: Path, environment: dict[str, str]) -> None:
    one = [sys.executable, "-m", "solorun", "status", str(root / "kssm_0")]
    bare = [sys.executable, "-c", "pass"]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(COLD):
        times[0].append(timed(one, environment))
        times[1].append(timed(bare, environment))
    own, python = (statistics.median(found) for found in times)
    print(f"one directory: solorun status {own * 1e3:.0f} ms, python3 -c pass {python * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
