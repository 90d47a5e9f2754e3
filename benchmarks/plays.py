"""v4 and a GPT on the embedded plays, each for so many CPU seconds; bits per byte of the held-out plays.

    python3 -m benchmarks.plays NAME RATE --cpu-seconds S --into FILE      one of them; `benchmarks.models --plays` all

The schedule's length follows from the speed measured at the start, so that the cosine ends with the CPU seconds. A
checkpoint beside the result file is written every two minutes; a run that was killed goes on from it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import LONG, PLAYS, Contestant
from benchmarks.workers import Task

if TYPE_CHECKING:
    from benchmarks.learner import Learner
    from kssm.corpus import Corpus

_TUNES = 12
"""A rate is tried for this part of the CPU seconds."""

_SAVE_S = 120

_LOOKS, _LOOK_S, _EVERY = 20, 60, 8
"""Along a run, but no more than one in so many CPU seconds; each reads every eighth block."""

_MEASURED = 12
_SEED = 1


def tasks(folder: Path, seconds: float) -> Iterator[Task]:
    """What can be done now: each of several rates for a while, then the best one for all the time."""
    for contestant in PLAYS:
        if len(contestant.rates) == 1:
            if _told(folder / f"{_name(contestant, contestant.rates[0], seconds)}.json") is None:
                yield _task(contestant, contestant.rates[0], seconds, folder)
            continue
        tried = {rate: _told(folder / f"{_name(contestant, rate, seconds / _TUNES)}.json") for rate in contestant.rates}
        missing = [rate for rate, told in tried.items() if told is None]
        for rate in missing:
            yield _task(contestant, rate, seconds / _TUNES, folder)
        if not missing:
            chosen = min(tried, key=lambda rate: tried[rate]["bits_per_byte"] or math.inf)
            if _told(folder / f"{_name(contestant, chosen, seconds)}.json") is None:
                yield _task(contestant, chosen, seconds, folder)


def told(folder: Path) -> list[dict[str, Any]]:
    """Every finished run in a folder, the longest last."""
    found = [_told(path) for path in sorted(folder.glob("plays-*.json"))]
    return sorted((one for one in found if one), key=lambda one: (one["cpu_seconds"], one["name"]))


def _name(contestant: Contestant, rate: float, seconds: float) -> str:
    return f"{contestant.name}-lr{rate:g}-{seconds:g}s"


def _task(contestant: Contestant, rate: float, seconds: float, folder: Path) -> Task:
    name = _name(contestant, rate, seconds)
    words = ("benchmarks.plays", contestant.name, repr(rate), "--cpu-seconds", repr(seconds))
    return Task(name, (*words, "--into", str(folder / f"{name}.json")))


def _told(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    shapes = {one.name: _facts(one) for one in PLAYS}
    return found if found.get("facts") == shapes.get(found.get("name", "")) else None


def _facts(contestant: Contestant) -> dict[str, Any]:
    """Without the steps, which each run sets by its speed."""
    return {name: value for name, value in contestant.facts().items() if name != "steps"}


class _Run:
    """One training that goes on from its checkpoint."""

    def __init__(self, contestant: Contestant, rate: float, seconds: float, into: Path, corpus: Corpus) -> None:
        self._contestant, self._rate, self._seconds, self._corpus = contestant, rate, seconds, corpus
        self._into, self._saved = into, into.with_suffix(".checkpoint")
        self._progress: dict[str, Any] = {"step": 0, "spent": 0.0, "steps": 0, "points": []}

    def __call__(self) -> dict[str, Any]:
        """Train to the end; what came of it."""
        found = self._restored()
        steps = self._progress["steps"] = found["steps"] if found else self._affordable()
        own = self._learner(steps)
        if found:
            own.model.load_state_dict(found.pop("model"))
            own.optimizer.load_state_dict(found.pop("optimizer"))
            self._progress = found
        print(f"{self._contestant.name}: step {self._progress['step']:,} of {steps:,}", flush=True)
        self._train(own, steps)
        return self._result(own)

    def _learner(self, steps: int) -> Learner:
        from benchmarks.learner import learner, training

        contestant = replace(self._contestant, steps=steps)
        config = training(contestant, self._rate, _SEED)
        return learner(contestant, config, self._corpus.train, self._corpus.vocabulary)

    def _affordable(self) -> int:
        """Steps within the CPU seconds, by a learner that is thrown away."""
        from benchmarks.learner import cpu_seconds

        own = self._learner(10_000)
        times = [cpu_seconds(lambda number=number: own.step(number)) for number in range(2 + _MEASURED)]
        return max(1, int(self._seconds / statistics.median(times[2:])))

    def _train(self, own: Learner, steps: int) -> None:
        from benchmarks.learner import cpu_seconds
        from benchmarks.validation import in_blocks

        now, parent, saved = self._progress, os.getppid(), time.monotonic()
        apart = max(1, steps // max(1, min(_LOOKS, int(self._seconds / _LOOK_S))))
        while now["step"] < steps:
            now["spent"] += cpu_seconds(lambda: own.step(now["step"]))
            now["step"] += 1
            gone = os.getppid() != parent
            if now["step"] % apart == 0 and not gone:
                loss = in_blocks(own.read, self._corpus.validation, self._contestant.length, _EVERY).loss
                now["points"].append({**self._place(), "bits_per_byte": round(self._bits(loss), 4)})
            if gone or time.monotonic() - saved > _SAVE_S:
                self._save(own)
                saved = time.monotonic()
            if gone:
                sys.exit("whoever began this run is gone; it goes on from here when it is begun again")

    def _place(self) -> dict[str, Any]:
        now, per_step = self._progress, self._contestant.rows * self._contestant.length
        return {"step": now["step"], "tokens": now["step"] * per_step, "cpu_s": round(now["spent"], 1)}

    def _bits(self, nats_per_token: float) -> float:
        part = self._corpus.facts.validation
        return nats_per_token * part.tokens / part.bytes / math.log(2)

    def _result(self, own: Learner) -> dict[str, Any]:
        from benchmarks.learner import parameters
        from benchmarks.validation import in_blocks

        tokens = self._corpus.validation
        loss = in_blocks(own.read, tokens, self._contestant.length).loss
        long = in_blocks(own.read, tokens, LONG).loss if getattr(own.model, "remembers", False) else None
        return {
            "name": self._contestant.name, "title": self._contestant.title, "facts": _facts(self._contestant),
            "rate": self._rate, "cpu_seconds": self._seconds, "parameters": parameters(own), **self._place(),
            "bits_per_byte": round(self._bits(loss), 4), "long": None if long is None else round(self._bits(long), 4),
            "vocabulary": self._corpus.vocabulary, "text": self._corpus.facts.source,
            "points": self._progress["points"],
        }  # fmt: skip

    def _save(self, own: Learner) -> None:
        import torch

        from kssm.atomicfile import replacing

        data = io.BytesIO()
        torch.save({**self._progress, "model": own.model.state_dict(), "optimizer": own.optimizer.state_dict()}, data)
        with replacing(self._saved) as file:
            file.write(data.getbuffer())

    def _restored(self) -> dict[str, Any] | None:
        import torch

        return torch.load(self._saved, weights_only=True) if self._saved.exists() else None

    def end(self, result: Mapping[str, Any]) -> None:
        """Write what came of it; the checkpoint has done its work."""
        from kssm.atomicfile import replacing

        with replacing(self._into) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
        self._saved.unlink(missing_ok=True)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[one.name for one in PLAYS])
    parser.add_argument("rate", type=float)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    parser.add_argument("--into", type=Path, required=True)
    said = parser.parse_args()
    import torch

    from kssm.corpus import prepare
    from kssm.device import prepare_cpu
    from kssm.errors import NotFinite

    torch.set_num_threads(1)
    prepare_cpu()
    corpus = prepare(None, said.into.parent / "corpus")
    contestant = next(one for one in PLAYS if one.name == said.name)
    run = _Run(contestant, said.rate, said.cpu_seconds, said.into, corpus)
    try:
        result = run()
    except NotFinite as error:
        result = {
            "name": said.name, "facts": _facts(contestant), "rate": said.rate, "cpu_seconds": said.cpu_seconds,
            "bits_per_byte": None, "failed": str(error),
        }  # fmt: skip
    run.end(result)


if __name__ == "__main__":
    main()
