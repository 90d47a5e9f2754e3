"""Many processes fight for one directory while some are killed and the label is deleted: are there ever two holders?

    python3 -m benchmarks.hammer --acquisitions 50000

Every holder proves that it is alone by an exclusive `O_CREAT | O_EXCL` witness file outside the lock's own directory:
it creates the witness on entering, removes it on leaving. A witness that is there already and whose writer lives is a
double holder. A witness of a killed holder is removed by the parent, which reaped it, so its death is certain.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Row, tell
from solorun import lock, process
from solorun.owner import Gone, Owner


@dataclass(frozen=True)
class Counts:
    """What happened."""

    acquisitions: int
    doubles: int
    kills: int
    removals: int
    refusals: int
    errors: int
    stuck: bool
    seconds: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.acquisitions} acquisitions, {self.doubles} double holders, {self.kills} SIGKILLs, "
            f"{self.removals} by-hand rm, {self.refusals} refusals, {self.errors} errors, stuck: {self.stuck}, "
            f"{self.seconds:.1f} s"
        )


def contend(directory: str, witness: str, report: int, seed: int) -> None:
    """One fighter: acquire, prove to be alone, hold a moment, release; for ever, until killed."""
    moments = random.Random(seed)
    me = process.identify_self()
    while True:
        held = lock.enter(directory, settle_s=0)
        if not isinstance(held, lock.DirectoryLock):
            os.write(report, b"r")
            time.sleep(moments.uniform(0, 0.0005))
            continue
        owner = Owner(f"{os.getpid()}", me, None, True, "hammer", ("hammer",), "/", time.time(), directory, held.inode)
        if held.publish(owner) is not None:
            held.close()
            os.write(report, b"r")
            continue
        try:
            os.close(os.open(f"{witness}/{os.getpid()}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.write(report, b"d" if _others(witness) else b"a")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{witness}/{os.getpid()}")
        held.release()


def _others(witness: str) -> bool:
    """Whether another live process claims to hold; a killed one's witness is no claim."""
    for name in os.listdir(witness):
        if int(name) != os.getpid() and not isinstance(process.probe(int(name)), Gone):
            return True
    return False


def hammer(
    acquisitions: int,
    fighters: int = 8,
    seed: int = 1,
    kill_every: int = 16,
    remove_every: int = 45,
    limit_s: float = 600,
) -> Counts:
    """Fight until so many acquisitions were made.

    Args:
        acquisitions: how many.
        fighters: processes at once; a killed one is replaced.
        seed: of kills and removals.
        kill_every: one SIGKILL per so many acquisitions.
        remove_every: one `rm training.lock` per so many.
        limit_s: a fight that makes no progress for this long is stuck.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        directory, witness = Path(place, "results"), Path(place, "witness")
        directory.mkdir()
        witness.mkdir()
        read, write = os.pipe()
        os.set_blocking(read, False)
        began = moved = time.monotonic()
        pids = [_fork(str(directory), str(witness), write, chance.random()) for _ in range(fighters)]
        made = doubles = refusals = kills = removals = errors = 0
        stuck = False
        try:
            while made < acquisitions:
                data = _read(read)
                made += data.count(b"a") + data.count(b"d")
                doubles += data.count(b"d")
                refusals += data.count(b"r")
                errors += data.count(b"e")
                if b"a" in data:
                    moved = time.monotonic()
                if time.monotonic() - moved > limit_s / 10:
                    stuck = True
                    break
                while kills < made // kill_every:
                    kills += 1
                    _replace(pids, chance, str(directory), str(witness), write)
                while removals < made // remove_every:
                    removals += 1
                    with contextlib.suppress(FileNotFoundError):
                        (directory / "training.lock").unlink()
                if not data:
                    time.sleep(0.0005)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(read)
            os.close(write)
        return Counts(made, doubles, kills, removals, refusals, errors, stuck, time.monotonic() - began)


def _fork(directory: str, witness: str, report: int, seed: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        contend(directory, witness, report, int(seed * 2**31))
    except BaseException as error:
        os.write(2, f"fighter {os.getpid()}: {error!r}\n".encode())
        os.write(report, b"e")
    finally:
        os._exit(1)


def _replace(pids: list[int], chance: random.Random, directory: str, witness: str, report: int) -> None:
    at = chance.randrange(len(pids))
    os.kill(pids[at], signal.SIGKILL)
    os.waitpid(pids[at], 0)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{witness}/{pids[at]}")
    pids[at] = _fork(directory, witness, report, chance.random())


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return b""


def main() -> int:
    """Print the counts; exit 1 when there was a double holder or a stuck fight."""
    parser = argparse.ArgumentParser(description="Fight for one lock.")
    parser.add_argument("--acquisitions", type=int, default=50_000)
    parser.add_argument("--fighters", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rows", help="where to append the row, for `make bench`")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    counts = hammer(arguments.acquisitions, arguments.fighters, arguments.seed)
    print(counts)
    wrong = counts.doubles or counts.errors or counts.stuck
    what = f"{arguments.fighters} processes fight for one directory, {counts.acquisitions:,} acquisitions"
    fight = f"{counts.kills:,} SIGKILLs, {counts.removals:,} by-hand rm"
    ours = f"{counts.seconds:.0f} s, {counts.errors} errors, {'stuck' if counts.stuck else 'never stuck'}"
    tell([Row(what, fight, ours, f"{counts.doubles} double holders", "0 double holders, never stuck", not wrong)])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
