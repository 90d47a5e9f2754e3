"""A contestant that learns: the product's own step for the K-SSMs, the same loop written plainly for the GPT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.contestants import WARM_UP, Contestant, made
from benchmarks.validation import Read
from kssm.batches import Batch, carried_begins, in_order
from kssm.carried import Carried
from kssm.config import TrainConfig
from kssm.device import Compute
from kssm.errors import NotFinite
from kssm.language_model import LanguageModel, State
from kssm.schedule import lr_at
from kssm.step import Stepper, adamw

_CPU = Compute(torch.device("cpu"))


class Learner(Protocol):
    """What a comparison needs of a contestant.

    Attributes:
        model: its weights.
        optimizer: AdamW.
    """

    model: Any
    optimizer: torch.optim.Optimizer

    def step(self, number: int) -> float:
        """One optimizer step; the cross-entropy of its batch. Raises NotFinite."""

    def read(self, rows_BT: Tensor, state: State | None) -> Read:
        """See `benchmarks.validation.Reader`."""


def training(contestant: Contestant, rate: float, seed: int) -> TrainConfig:
    """How a contestant is trained: betas, decay, clip, warm-up and schedule are the same for all."""
    return TrainConfig(
        batch_size=contestant.rows, gradient_accumulation=1, seq_length=contestant.length, max_steps=contestant.steps,
        warmup_steps=min(WARM_UP, contestant.steps // 4), lr=rate, beta2=0.99, seed=seed,
        carry_state=contestant.carried,
    )  # fmt: skip


def learner(contestant: Contestant, config: TrainConfig, tokens: NDArray[np.integer], vocabulary: int) -> Learner:
    """A contestant with its initial values.

    Args:
        contestant: who.
        config: how it is trained.
        tokens: [n], to learn from.
        vocabulary: V.
    """
    model = made(contestant, vocabulary, config.seed)
    if contestant.model == "gpt":
        return PlainLearner(model, config, in_order(tokens, config))
    return KssmLearner(model, config, tokens)


class KssmLearner:
    """v2, v3 or v4 by the trainer's own step."""

    def __init__(self, model: LanguageModel, config: TrainConfig, tokens: NDArray[np.integer]) -> None:
        carried = None
        if config.carry_state:
            shape = {"rows": config.rows, "length": config.seq_length}
            carried = Carried(lambda step: carried_begins(len(tokens), step=step, **shape))
        batch = in_order(tokens, config)
        self.model = model
        self._stepper = Stepper(model, config, _CPU, batch, log=lambda _line: None, carried=carried)
        self.optimizer: torch.optim.Optimizer = self._stepper.optimizer

    @property
    def carried(self) -> Carried | None:
        """What goes from step to step; None where each text begins anew."""
        return self._stepper.carried

    def step(self, number: int) -> float:
        return self._stepper.step(number).ce

    def read(self, rows_BT: Tensor, state: State | None) -> Read:
        features = self.model(rows_BT[:, :-1], None, state)
        loss = features.tied.cross_entropy(features.hidden_BSD.flatten(0, 1), rows_BT[:, 1:].flatten())
        none = rows_BT.new_zeros(0, dtype=torch.float32)
        coupling = none if features.coupling_L is None else features.coupling_L
        return Read(loss, features.order_parameter_L, coupling, features.state)


class PlainLearner:
    """The GPT: same order of the data, same optimizer, clip and schedule."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig, batch: Callable[[int], Batch]) -> None:
        self.model = model
        self.optimizer: torch.optim.Optimizer = adamw(model, config)  # type: ignore[arg-type]  # of it, the parameters
        self._config = config
        self._batch = batch

    def step(self, number: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        torch.manual_seed(self._config.seed << 32 | number)  # of its dropout: a run that goes on draws the same
        loss = self._loss(torch.from_numpy(self._batch(number)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise NotFinite(f"step {number}: loss {loss:g}, gradient norm {norm:g}", "use a lower rate")
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(number, self._config)
        self.optimizer.step()
        return loss.item()

    def read(self, rows_BT: Tensor, state: State | None) -> Read:
        assert state is None
        self.model.eval()
        none = torch.zeros(0)
        return Read(self._loss(rows_BT), none, none)

    def _loss(self, rows_BT: Tensor) -> Tensor:
        logits = self.model(rows_BT[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), rows_BT[:, 1:].flatten())


def parameters(learner: Learner) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in learner.model.parameters())


def cpu_seconds(call: Callable[[], object]) -> float:
    """Processor time of a call, all threads together."""
    began = time.process_time()
    call()
    return time.process_time() - began
