"""One optimizer step: micro-batches that fit the memory, gradients, clipping, AdamW, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kssm.carried import Carried
from kssm.config import TrainConfig
from kssm.device import Compute, clear_caches, is_out_of_memory
from kssm.errors import KssmError, NotFinite, StepFailed, Stopped
from kssm.language_model import LanguageModel, State
from kssm.objective import Objective, objective
from kssm.ranks import Ranks
from kssm.schedule import lr_at


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step in numbers; means over its tokens.

    Args:
        loss: `ce + lambda_reg * reg`.
        ce: cross-entropy, nats per token.
        reg: the regulariser before its weight; 0 where a model has none.
        order_parameter: R, mean over tokens and layers.
        order_parameter_std: its standard deviation over the tokens of a micro-batch.
        order_parameter_layers: R of each layer.
        u: mean u over tokens and layers; v3 alone has it.
        coupling: mean k over tokens and layers; v4 alone has it.
        grad_norm: global norm of the gradient before clipping.
        lr: learning rate of this step.
        tokens: tokens trained on in this step.
        seconds: wall time of this step.
    """

    loss: float
    ce: float
    reg: float
    order_parameter: float
    order_parameter_std: float
    order_parameter_layers: tuple[float, ...]
    u: float | None
    coupling: float | None
    grad_norm: float
    lr: float
    tokens: int
    seconds: float


def noise_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of a micro-batch's noise, a pure function: a resumed run needs no stored random state."""
    digest = hashlib.blake2b(f"noise {seed} {step} {micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # generators take seeds below 2^63


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the optimizer's running means now: between steps, running out of memory could not be mended.

    A step of rate 0 on gradients of 0 changes no weight; its count is taken back.

    Raises:
        KssmError: model and optimizer do not fit the memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise KssmError("the model and its optimizer do not fit the memory", "choose a smaller --size") from None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()
    optimizer.zero_grad(set_to_none=True)


def adamw(model: LanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone.

    Departure: the published trainers decay every parameter. That would draw omega to one phase, delta to no spread and
    the norms' gains to 0, which is a pull on the dynamics and not on the complexity of the map.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)


class _Task(nn.Module):
    """The objective as a module, since DistributedDataParallel wants to see the forward pass."""

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._config = config

    def forward(self, rows: Tensor, noise: torch.Generator, state: State | None) -> Objective:
        """See `objective`."""
        return objective(self.model, rows, noise, self._config, state)


class Stepper:
    """Takes optimizer steps; a step either happens as a whole or leaves the weights alone.

    Args:
        model: on the device of `compute`.
        config: of the run.
        compute: device and precision.
        batch: `batch(step)` gives the token ids of a step, [rows, S + 1] with rows the effective batch.
        log: takes a line for people.
        should_stop: asked between micro-batches; a step that is left is made again by whoever resumes.
        before_update: called when the gradients are there, before weights or optimizer change: whoever reads those
            beside the step returns from it once they are read.
        carried: what goes from step to step beside weights and optimizer; None where each row begins a text.

    Attributes:
        optimizer: AdamW, for checkpoints.
        micro_batch: sequences at a time; halves itself when memory is full, and may be set.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        compute: Compute,
        batch: Callable[[int], NDArray[np.integer]],
        log: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
        before_update: Callable[[], None] = lambda: None,
        carried: Carried | None = None,
    ) -> None:
        self.model = model
        self.optimizer = adamw(model, config)
        self.micro_batch = config.batch_size
        self._config = config
        self._compute = compute
        self._batch = batch
        self._log = log
        self._should_stop = should_stop
        self._before_update = before_update
        self.carried = carried
        self._noise = torch.Generator(compute.device)
        self._task: nn.Module = _Task(model, config)
        self._ranks: Ranks | None = None
        self._proven = 0

    def share(self, ranks: Ranks) -> None:
        """Compute each step together with other ranks from now on, beginning with rank 0's weights and optimizer.

        Each rank takes its share of the rows. Its micro-batches have the noise that one process with the same
        micro-batch would give them, so both differ by the order of summation alone.

        Raises:
            LostRank: a rank is gone.
        """
        self._ranks = ranks
        self._task = ranks.wrap(self._task)
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        states = (self.optimizer.state[parameter] for parameter in held)
        ranks.spread([state[name] for state in states for name in sorted(state)])

    def step(self, step: int) -> StepResult:
        """Train on the batch of one step.

        Args:
            step: counts from 0; with weights, optimizer state and micro-batch it determines the result, on a CPU
                to the bit.

        Raises:
            KssmError: loss or gradient are not finite, or one sequence does not fit the memory.
            Stopped: should_stop said so between two micro-batches; weights and optimizer are as before the step.
        """
        began = time.perf_counter()
        rows = torch.from_numpy(self._batch(step).astype(np.int64))
        own = rows if self._ranks is None else self._ranks.own(rows)
        sums, norm = self._gradients_within_memory(step, own.to(self._compute.device))
        # One wait for the device in a step, and before the weights change.
        loss, ce, reg, std, u, coupling, grad_norm, *layers = torch.cat((sums[:6], norm[None], sums[6:])).tolist()
        self._require_finite(step, loss, grad_norm)
        self._before_update()
        lr = lr_at(step, self._config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.carried is not None:
            self.carried.close()
        return StepResult(
            loss=loss, ce=ce, reg=reg, order_parameter=sum(layers) / len(layers), order_parameter_std=std,
            order_parameter_layers=tuple(layers), u=u if self.model.config.name == "v3" else None,
            coupling=coupling if self.model.config.name == "v4" else None, grad_norm=grad_norm, lr=lr,
            tokens=rows.shape[0] * (rows.shape[1] - 1), seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _gradients_within_memory(self, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Clipped gradients of the whole batch, with as small a micro-batch as it takes; measurements and norm."""
        while True:
            try:
                if self._ranks is None or self._is_proven(self._ranks, step, rows):
                    sums = self._gradients(step, rows)
                    return sums, torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._require_alone(step)
            # Outside the handler: while the error lives, its traceback holds the failed pass's tensors.
            self.optimizer.zero_grad(set_to_none=True)
            clear_caches(self._compute.device)
            self._halve_micro_batch(step, len(rows))

    def _is_proven(self, ranks: Ranks, step: int, rows: Tensor) -> bool:
        """Whether a micro-batch fits every rank's memory, tried out before the gradients of a step are added.

        Once that has begun, a rank that begins again would leave the others waiting for gradients that never come.
        """
        if self._proven == self.micro_batch:
            return True
        fits = True
        try:
            self._add_gradient(step, 0, rows[: self.micro_batch], 1.0, None, together=False)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if ranks.anywhere(not fits):
            return False
        self._proven = self.micro_batch
        return True

    def _require_alone(self, step: int) -> None:
        if self._ranks is not None:
            raise StepFailed(
                f"step {step}: out of memory on rank {self._ranks.launch.rank} with {self.micro_batch} sequences at a "
                f"time, which had been enough",
                "start again to go on from the last checkpoint; a smaller --batch-size takes less memory",
            )

    def _gradients(self, step: int, rows: Tensor) -> Tensor:
        """Accumulates gradients; returns the step's mean loss, ce, reg, std of R, u, k and R of each layer."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.carried is not None:
            self.carried.open(step)
        sums: list[Tensor] = []
        parts = torch.split(rows, self.micro_batch)
        for index, part in enumerate(parts):
            if index and self._should_stop():  # a step of the published batch takes a minute on a CPU
                self.optimizer.zero_grad(set_to_none=True)
                raise Stopped
            share = len(part) / len(rows)
            first = 0 if self._ranks is None else self._ranks.launch.rank * len(parts)
            state = None if self.carried is None else self.carried.before(index * self.micro_batch, len(part))
            result = self._add_gradient(step, first + index, part, share, state, together=index + 1 == len(parts))
            if self.carried is not None:
                self.carried.after(result.features.state)
            sums.append(_measurements(result) * share)
        own = torch.stack(sums).sum(0)
        return own if self._ranks is None else self._ranks.mean(own)

    def _add_gradient(
        self, step: int, micro_batch: int, part: Tensor, share: float, state: State | None, *, together: bool
    ) -> Objective:
        """Add a micro-batch's gradient to this rank's own; the last one of a step adds those of all ranks together."""
        self._noise.manual_seed(noise_seed(self._config.seed, step, micro_batch))
        with contextlib.nullcontext() if self._ranks is None else self._ranks.adding(together):
            with self._compute.autocast():
                result: Objective = self._task(part, self._noise, state)
            (result.loss * share).backward()  # type: ignore[no-untyped-call]
        return result

    def _halve_micro_batch(self, step: int, rows: int) -> None:
        size = min(self.micro_batch, rows)
        if size == 1:
            raise StepFailed(
                f"step {step}: out of memory with one sequence of {self._config.seq_length} tokens at a time",
                "choose a smaller --size or --seq-length, or stop other programs that use this device",
            )
        self.micro_batch = math.ceil(size / 2)
        self._log(
            f"step {step}: out of memory with {size} sequences at a time; "
            f"going on with {self.micro_batch}, the effective batch stays {rows}"
        )

    def _require_finite(self, step: int, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        self.optimizer.zero_grad(set_to_none=True)
        raise NotFinite(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; the weights are as they were before this step",
            "start anew with a lower --lr: --fresh, or another --output-dir",
        )


def _measurements(result: Objective) -> Tensor:
    """[loss, ce, reg, std of R, u, k, R of each layer], detached."""
    features, none = result.features, result.ce.new_zeros(())
    u, k = (none if of_L is None else of_L.mean() for of_L in (features.u_L, features.coupling_L))
    scalars = torch.stack((result.loss, result.ce, result.reg, features.order_parameter_std, u, k))
    return torch.cat((scalars, features.order_parameter_L)).detach()
