"""Kills of a real trainer that saves at every step: what was told as saved is there, the next start needs no hand.

Lives of a run follow each other in one directory until it is complete; then its weights and losses must be
those of a run that nothing interrupted, to the bit. The three models take turns.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kssm.checkpoint import load
from kssm.errors import CheckpointError
from tests.faults.forked import ForkedTrainer, forked_trainer
from tests.faults.tally import Tally

KILLS = 2_000
STEPS = 16
_MODELS = ("v3", "v4", "v2")
_FLAGS = (
    "--size", "tiny", "--vocabulary", "bytes", "--batch-size", "1", "--gradient-accumulation", "1",
    "--seq-length", "16", "--eval-batches", "1", "--eval-interval", "8", "--log-interval", "1", "--keep", "2",
    "--save-interval", "1", "--max-steps", str(STEPS), "--device", "cpu",
)  # fmt: skip
_LONGEST_LIFE_S = 60


def attack(seed: int, share: float = 1.0) -> Tally:
    """Kill trainers at random moments.

    Args:
        seed: of the moments.
        share: of 2,000 kills.
    """
    wanted = max(1, round(KILLS * share))
    with tempfile.TemporaryDirectory(prefix="saving-") as place, forked_trainer(Path(place, "tokens")) as trainer:
        kept = _Kept(Path(place), trainer, random.Random(seed))
        # On a busy machine a kill that was aimed into a file may come after it.
        while kept.wants_more(wanted) and len(kept.failures) < 10:
            kept.live_through(_MODELS[kept.counts["whole runs"] % len(_MODELS)], wanted)
    counts = dict(kept.counts)
    return Tally("saving", counts.get("SIGKILLs", 0), tuple(f"seed {seed}: {one}" for one in kept.failures), counts)


@dataclass(slots=True)
class _Kept:
    """What is known between the lives."""

    place: Path
    trainer: ForkedTrainer
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unbroken: dict[str, tuple[str, dict[int, float]]] = field(default_factory=dict)

    def wants_more(self, wanted: int) -> bool:
        """Whether kills are missing: so many, a quarter of them in the middle of a file, and a whole run."""
        cut, kills = self.counts["files cut short"], self.counts["SIGKILLs"]
        enough = kills >= wanted and cut >= wanted // 4 and self.counts["whole runs"] >= 1
        return not enough and kills < 10 * wanted

    def live_through(self, model: str, wanted: int) -> None:
        """Start and kill one run again and again until it is complete, or enough kills were made."""
        directory = self.place / f"{model}-{self.counts['whole runs']}"
        expected = self._expected(model)
        while self.wants_more(wanted):
            before = len(self.failures)
            complete = self._one_life(model, directory)
            if len(self.failures) > before:
                return
            if complete:
                self.counts["whole runs"] += 1
                if _outcome(directory) != expected:
                    self.failures.append(f"{model}: weights or losses of a killed run are not those of an unbroken one")
                return

    def _expected(self, model: str) -> tuple[str, dict[int, float]]:
        if model not in self.unbroken:
            directory = self.place / f"{model}-unbroken"
            self._start(model, directory)
            deadline = time.monotonic() + _LONGEST_LIFE_S
            while (code := self.trainer.ended()) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert code == 0, (self.place / "output").read_text()[-2000:]
            self.unbroken[model] = _outcome(directory)
        return self.unbroken[model]

    def _start(self, model: str, directory: Path) -> None:
        self.trainer.start(("train", model, *_FLAGS, "--output-dir", str(directory)), self.place / "output")

    def _one_life(self, model: str, directory: Path) -> bool:
        """True when the run came to its end."""
        told_before = _told(directory)
        self._start(model, directory)
        self.counts["starts"] += 1
        code = self._await_moment(directory, told_before)
        if code is None:
            code = self.trainer.signal(signal.SIGKILL)
        if code == -signal.SIGKILL:
            self.counts["SIGKILLs"] += 1
        elif code != 0:
            said = (self.place / "output").read_text(errors="replace")[-600:]
            self.failures.append(f"{model}: a start without a hand ended with {code}: {said!r}")
        self._look(model, directory, told_before)
        return code == 0

    def _await_moment(self, directory: Path, told_before: int) -> int | None:
        """Wait for a moment to kill at; the exit code when the run ended before."""
        kind = self.chance.choice(("start-up", "in a file", "in a file", "after saves"))
        delay = self.chance.uniform(0, {"start-up": 0.6, "in a file": 0.004, "after saves": 0.03}[kind])
        saves = self.chance.randint(0, 4)
        deadline = time.monotonic() + (_LONGEST_LIFE_S if kind != "start-up" else 0)
        while time.monotonic() < deadline:
            if _told(directory) >= told_before + saves:
                if kind == "after saves":
                    break
                if any(directory.glob(".*.safetensors.*.tmp")):
                    self.counts["kills aimed into a file"] += 1
                    break
            if (code := self.trainer.ended()) is not None:
                return code
            time.sleep(0.0005)  # else the watcher takes a core of the trainer's
        time.sleep(delay)  # the random moment itself
        return self.trainer.ended()

    def _look(self, model: str, directory: Path, told_before: int) -> None:
        """After a death: every file under a checkpoint's name is whole, none that was told of is missing."""
        told, found = _told(directory), [0]
        for path in directory.glob("*.safetensors"):
            self.counts["files verified"] += 1
            try:
                step = load(path).snapshot.facts.state.step
            except CheckpointError as error:
                self.failures.append(f"{model}: {path.name} does not load: {error}")
                continue
            if path.name.startswith("checkpoint_"):
                found.append(step)
        self.counts["files cut short"] += len(list(directory.glob(".*.safetensors.*.tmp")))
        if max(found) < max(told, told_before):
            self.failures.append(f"{model}: step {max(told, told_before)} was told as saved, step {max(found)} is left")


def _told(directory: Path) -> int:
    """The newest step that the journal tells as saved; every line of it must be whole."""
    try:
        text = (directory / "events.jsonl").read_text()
    except FileNotFoundError:
        return 0
    whole = text[: text.rfind("\n") + 1]
    return max((row["step"] for row in map(json.loads, whole.splitlines()) if row["event"] == "saved"), default=0)


def _outcome(directory: Path) -> tuple[str, dict[int, float]]:
    """A digest of all tensors at the end, weights and the optimizer's state, and the loss of every step."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load(directory / f"checkpoint_{STEPS}.safetensors").snapshot.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    rows = (json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines())
    return digest.hexdigest(), {row["step"]: row["loss"] for row in rows if row["loss"] is not None}
