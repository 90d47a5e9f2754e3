"""How long training stands still for a checkpoint: a plain save against ours, in real steps of the medium model.

python3 -m benchmarks.checkpoint

Medium v3 with 100,277 tokens: weights and AdamW's two means are 555 MB. A round: a step of random tokens
alone, a plain save (`torch.save`, fsync, rename), a step with ours beside it, and ours with nothing beside it. Ours
stands still while it begins, while the update waits for the last byte to be read, and while it is told of.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import solorun
from benchmarks.measure import Row, tell
from kssm.config import model_config, train_config
from kssm.device import Compute
from kssm.models import build
from kssm.report import Report
from kssm.saves import Saves
from kssm.snapshot import Snapshot, SnapshotFacts, TrainState, model_tensors, optimizer_tensors
from kssm.step import Stepper, allocate_state

# Half of the sequences that the other benchmarks take: fewer seconds, and less time to hide a write in.
VOCABULARY, ROWS, LENGTH = 100_277, 2, 512
WARM_UP, ROUNDS = 1, 5
AIM_MS = 50


class Training:
    """The medium model, trained on random tokens.

    Args:
        run: holds the directory that is saved into.
    """

    def __init__(self, run: solorun.Run) -> None:
        self.run = run
        self.model = build(model_config("v3", "medium", VOCABULARY), seed=0)
        self.saves = Saves(run, Report(lambda _line: None, terminal=False), keep=1)
        self.stepper = Stepper(
            self.model,
            train_config("v3", "medium", batch_size=ROWS, gradient_accumulation=1, seq_length=LENGTH),
            Compute(torch.device("cpu")),
            batch=lambda step: np.random.default_rng(step).integers(0, VOCABULARY, (ROWS, LENGTH + 1)),
            log=print,
            before_update=self._before_update,
        )
        allocate_state(self.stepper.optimizer)
        self.steps = 0
        self.waited_s = 0.0

    def _before_update(self) -> None:
        self.waited_s = seconds(self.saves.release)

    def step(self) -> float:
        """One step; its seconds without what its update waited for a save."""
        took = seconds(lambda: self.stepper.step(self.steps))
        self.steps += 1
        return took - self.waited_s

    def snapshot(self) -> Snapshot:
        """All that a run saves."""
        tensors = model_tensors(self.model)
        tensors |= optimizer_tensors(self.stepper.optimizer, self.model.named_parameters())
        state = TrainState(self.steps, self.steps)
        return Snapshot(tensors, SnapshotFacts(state, {}, {}, "random", "", self.run.run_id, (self.run.run_id,), ROWS))

    def plain_save(self) -> None:
        """As anyone would write it first: whole before it has its name, and durable."""
        private = Path(self.run.directory) / "plain.tmp"
        with private.open("wb") as file:
            torch.save({"model": self.model.state_dict(), "optimizer": self.stepper.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        private.rename(private.with_name("plain.pt"))


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round.

    Args:
        plain: a plain save.
        ours: what the training stood still for ours.
        alone: a step with no save beside it.
        beside: a step with ours beside it, without what its update waited.
        read: until the last byte is read with no step beside it; a quicker forward and backward waits for the rest.
    """

    plain: float
    ours: float
    alone: float
    beside: float
    read: float


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def one_round(training: Training) -> Round:
    """Two steps and two saves."""
    alone = training.step()
    plain = seconds(training.plain_save)
    begun = seconds(lambda: training.saves.begin(training.snapshot()))
    beside = training.step()
    stood = begun + training.waited_s
    while training.saves.is_saving:  # beside the steps that a run would take now
        time.sleep(0.01)
        stood += seconds(training.saves.look)
    training.saves.begin(training.snapshot())
    read = seconds(training.saves.release)
    training.saves.finish()
    return Round(plain, stood, alone, beside, read)


def main() -> None:
    """Medians over the rounds."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as place, solorun.hold(place) as run:
        training = Training(run)
        rounds = [one_round(training) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
        size = max(path.stat().st_size for path in Path(place).glob("checkpoint_*.safetensors"))
    plain, ours = (statistics.median(getattr(one, name) for one in rounds) * 1e3 for name in ("plain", "ours"))
    ratio = statistics.median(one.plain / one.ours for one in rounds)
    slower = statistics.median(one.beside / one.alone for one in rounds)
    longest = max(one.ours for one in rounds) * 1e3
    step, read = (statistics.median(getattr(one, name) for one in rounds) * 1e3 for name in ("alone", "read"))
    print(
        f"steps of {ROWS} x {LENGTH} tokens take {step:,.0f} ms; with a save beside them {slower:.2f}x that; "
        f"its bytes are read within {read:,.0f} ms with nothing beside it, and a quicker forward and backward waits "
        f"for the rest; the longest that training stood still here: {longest:.0f} ms; {ROUNDS} rounds"
    )
    what = f"checkpoint of {size / 1e6:.0f} MB, training stands still"
    tell([Row(what, f"torch.save + fsync {plain:,.0f} ms", f"{ours:.1f} ms ({ratio:.0f}x less)", f"{ours:.1f} ms",
              f"<= {AIM_MS} ms", ours <= AIM_MS)])  # fmt: skip


if __name__ == "__main__":
    main()
