"""`solorun status` over 1,000 results directories beside the procedure's own script, interleaved; and one directory.

    python3 -m benchmarks.status

"Cold" is a process of its own, as every command is. The script's work, done as portably as Linux asks: find every lock,
cat it, `ps -p` it; for every log when it was last written and its last three lines. Both are whole commands, started by
a shell's means, their output thrown away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, interleaved, tell

DIRECTORIES = 1_000
LIVE = 4
PAIRS = 5
COLD = 41
AIM_SCRIPT = 90
AIM_BARE = 3.0
SETTLED_S = 3.0

_COMMAND = Path(sys.executable).with_name("solorun")
SOLORUN = [str(_COMMAND)] if _COMMAND.exists() else [sys.executable, "-m", "solorun"]
"""As a person types it, where it is installed."""

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


def timed(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> None:
    """A year of runs beside the script; one directory, and none, beside a bare start of Python."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        root = Path(top) / "results"
        root.mkdir()
        # With compiled modules, as an installation has them.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "SOLORUN_STATE": f"{top}/state", "ROOT": str(root)}
        os.environ["SOLORUN_STATE"] = f"{top}/state"
        furnish(root)
        rows = [cold("one directory", [str(root / "kssm_0")], environment)]
        live = [
            subprocess.Popen([sys.executable, "-c", TRAINER, str(root / f"kssm_{2 * n}"), "-1"], stdout=subprocess.PIPE)
            for n in range(1, LIVE + 1)
        ]
        try:
            for child in live:
                assert child.stdout is not None
                child.stdout.readline()
            settle(root / f"kssm_{2 * LIVE}")
            settle(Path(top) / "state" / "runs.db")
            rows.append(compare(root, environment))
            elsewhere = {**environment, "SOLORUN_ROOTS": str(root / "none")}
            rows.append(cold("no directory named, 5 runs in the registry, 4 of them live", [], elsewhere))
        finally:
            for child in live:
                child.terminate()
                child.wait()
    tell(rows)


def compare(root: Path, environment: dict[str, str]) -> Row:
    ours = [*SOLORUN, "status", str(root)]
    timed(ours, environment)  # what is known of directories that have not changed is kept from here on
    pair = interleaved(
        lambda: timed(["sh", "-c", SCRIPT], environment), lambda: timed(ours, environment), PAIRS, warm_up=1
    )
    return Row(
        f"solorun status, {DIRECTORIES:,} directories, {LIVE} live, half with stale locks",
        f"the procedure's script {pair.plain * 1e3:,.0f} ms",
        f"{pair.ours * 1e3:.0f} ms",
        f"{pair.ratio:.0f}x",
        f">= {AIM_SCRIPT}x",
        pair.ratio >= AIM_SCRIPT,
    )


def cold(what: str, words: list[str], environment: dict[str, str]) -> Row:
    bare = [sys.executable, "-c", "pass"]
    ours = [*SOLORUN, "status", *words]
    pair = interleaved(lambda: timed(bare, environment), lambda: timed(ours, environment), COLD, warm_up=3)
    ratio = 1 / pair.ratio
    return Row(
        f"solorun status, cold, {what}",
        f"python3 -c pass {pair.plain * 1e3:.0f} ms",
        f"{pair.ours * 1e3:.0f} ms",
        f"{ratio:.2f}x",
        f"<= {AIM_BARE:g}x",
        ratio <= AIM_BARE,
    )


def settle(directory: Path) -> None:
    """Wait until nothing in a directory counts as just written any more."""
    while time.time() - directory.stat().st_ctime < SETTLED_S + 1:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
