"""Fuzzes everything that reads a file: guided by coverage where the package atheris is installed, else blindly.

    python3 -m benchmarks.fuzz --seconds 60               each reader in turn, 60 s in all
    python3 -m benchmarks.fuzz --seconds 60 owner         one of them
    pip install atheris                                   for the guided form; no part of the project needs it

What a reader may do with bytes: read them, or refuse them with its own error. Anything else ends the fuzzing of that
reader, with the bytes in `benchmarks/results/fuzz-READER-*`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
GUIDED = importlib.util.find_spec("atheris") is not None

Reader = Callable[[bytes], object]


def _place() -> tempfile.TemporaryDirectory[str]:
    from tests.faults.corrupt import QUICK_DISK

    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=QUICK_DISK)


def readers(place: Path) -> dict[str, tuple[Reader, bytes]]:
    """Every reader by name, with a sound file for it. Files are written into `place`."""
    import torch

    from kssm import checkpoint, tensorfile, tokenfile
    from kssm.errors import KssmError
    from kssm.snapshot import Snapshot, SnapshotFacts, TrainState
    from solorun import hosts, lastwords, owner, progress, record, rundir, settingsfile, torn, waiting
    from solorun.errors import BadUsage
    from tests.faults.corrupt_guard import FAR, Scene

    scene = Scene(place)
    sound = {victim.name: victim.sound for victim in scene.victims}
    facts = SnapshotFacts(TrainState(1, 16), {}, {}, "corpus", "", "run", ("run",), 1)
    saved = checkpoint.save(place, Snapshot({"model.w": torch.arange(6.0)}, facts)).path

    def through(path: Path, read: Callable[[], object], data: bytes, *allowed: type[Exception]) -> None:
        path.write_bytes(data)
        with contextlib.suppress(*allowed):
            read()

    def of_owner(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            owner.encode_owner(owner.decode_owner(data))

    def of_header(data: bytes) -> None:
        whole = data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)
        through(saved, lambda: tensorfile.read_tensors(saved), whole, KssmError)

    def of_checkpoint_facts(data: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            told = json.loads(data)
            if isinstance(told, dict):  # of anything else the file's own reader has taken care
                SnapshotFacts.from_json(told).as_json()

    def of_tokens(data: bytes) -> None:
        head = tokenfile.MAGIC + len(data).to_bytes(8, "little") + hashlib.sha256(data).digest() + data
        path = place / "a.tokens"
        through(path, lambda: tokenfile.map_tokens(path), head.ljust(tokenfile.HEADER, b"\0") + bytes(8), KssmError)

    def of_settings(data: bytes) -> None:
        through(scene.settings, lambda: settingsfile.load(place, {}), data, BadUsage)

    def of_log(data: bytes) -> None:
        lastwords.last_words(data.decode("utf-8", "replace"))

    def of_kept(data: bytes) -> None:
        through(place / "state/hosts/far.json", lambda: hosts.recall(place / "state", FAR), data)

    def in_results(name: str, read: Callable[[], object]) -> Reader:
        return lambda data: through(scene.results / name, read, data)

    events, run = lambda: list(record.read_events(scene.fd)), lambda: record.read_record(scene.fd)
    return {
        "owner": (of_owner, sound["training.owner.json"]),
        "label": (owner.parse_label, sound["training.lock"]),
        "record": (in_results("run.json", run), sound["run.json"]),
        "journal": (in_results("events.jsonl", events), sound["events.jsonl"]),
        "metrics": (in_results("metrics.jsonl", lambda: torn.damaged(scene.results)), sound["metrics.jsonl"]),
        "progress": (progress.decode, sound["progress"]),
        "ticket": (lambda data: waiting.decode("x", data), sound["waiting"]),
        "settings": (of_settings, sound["solorun.toml"]),
        "kept": (of_kept, sound["hosts/far.json"]),
        "log": (of_log, b"Traceback (most recent call last):\n x\n"),
        "names": (lambda data: rundir.checkpoint_step(os.fsdecode(data)), b"checkpoint_12.safetensors"),
        "tensors": (of_header, saved.read_bytes()),
        "facts": (of_checkpoint_facts, json.dumps(facts.as_json()).encode()),
        "tokens": (of_tokens, b'{"fingerprint": "", "vocabulary": 257, "end": 256, "dtype": "uint16"}'),
    }  # fmt: skip


def blindly(name: str, seconds: float, seed: int) -> int:
    """Without atheris: seeded damage to the sound file, and to what became of it. Counts the inputs."""
    from tests.faults.mutations import GARBAGE, bytewise

    chance, count = random.Random(seed), 0
    with _place() as place:
        read, sound = readers(Path(place))[name]
        pool, end = [sound, *GARBAGE], time.monotonic() + seconds
        while time.monotonic() < end:
            for _, data in bytewise(chance.choice(pool), chance, 64, tuple(pool[:8])):
                count += 1
                try:
                    read(data)
                except Exception:
                    kept = RESULTS / f"fuzz-{name}-{hashlib.sha256(data).hexdigest()[:12]}"
                    kept.write_bytes(data)
                    print(f"{name}: {kept}")
                    raise
                if len(data) < 1 << 16:
                    pool[chance.randrange(1, len(pool))] = data
    return count


def guided(name: str, seconds: int, seed: int) -> None:
    """With atheris: ends the process, with status 0 when nothing was found."""
    import atheris
    import torch  # noqa: F401 - before what is instrumented, which it need not be

    with _place() as place:
        with atheris.instrument_imports(include=["solorun", "kssm"]):
            read, sound = readers(Path(place))[name]
        corpus = Path(place, "corpus")
        corpus.mkdir()
        (corpus / "sound").write_bytes(sound)
        limits = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=65536", "-rss_limit_mb=3000", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={RESULTS}/fuzz-{name}-", str(corpus)], read)
        atheris.Fuzz()


def main() -> int:
    """Each reader in a process of its own; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--seconds", type=int, default=60, help="in all (60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    said = parser.parse_args()
    with _place() as place:
        names = list(readers(Path(place)))
    if unknown := set(said.readers) - set(names):
        parser.error(f"no reader has the name {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted = said.readers or names
    if said.in_process:
        if GUIDED:
            guided(wanted[0], said.seconds, said.seed)
        print(f"{wanted[0]}: {blindly(wanted[0], said.seconds, said.seed):,} inputs, nothing found")
        return 0
    print("guided by coverage (atheris)" if GUIDED else "atheris is not installed (pip install atheris): blind damage")
    found = [name for name in wanted if _one(name, max(1, said.seconds // len(wanted)), said.seed)]
    print(f"found something in {', '.join(found)}" if found else f"{len(wanted)} readers, nothing found")
    return 1 if found else 0


def _one(name: str, seconds: int, seed: int) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.fuzz",
        "--in-process",
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    told = [line for line in lines if line.startswith(("Done ", f"{name}:"))] if not done.returncode else lines[-25:]
    print(f"{name}: " + "\n  ".join(told), flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
