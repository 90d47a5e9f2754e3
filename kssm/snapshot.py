"""What a run needs to continue, as tensors by name and plain facts; and the way into a model and an optimizer."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.errors import CheckpointError
from kssm.language_model import LanguageModel
from kssm.models import build

FORMAT = 1
_MOST = 1 << 62

# What may change between a run and its continuation; max_steps changes the learning rates, which is said aloud.
_FREE = {"max_steps", "eval_interval", "save_interval", "log_interval", "eval_batches", "keep"}
_BATCH = ("batch_size", "gradient_accumulation")


@dataclass(frozen=True, slots=True)
class TrainState:
    """How far a run has come.

    Args:
        step: optimizer steps done.
        tokens_seen: tokens trained on.
        best_loss: smallest validation loss, infinite before the first evaluation.
        evaluated_step: step of the last evaluation, -1 before the first; a stop may come between step and evaluation.
    """

    step: int
    tokens_seen: int
    best_loss: float = math.inf
    evaluated_step: int = -1


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """What a checkpoint tells beside its tensors.

    Args:
        state: how far the run has come.
        model: the model's configuration, JSON values.
        training: the training's configuration, JSON values.
        corpus_fingerprint: of the tokens.
        corpus_source: the text that was named; empty for the embedded one.
        run_id: of the run that saved.
        lineage: run ids, oldest first, the run's own last.
        micro_batch: sequences at a time, as memory allowed.
        vocabulary: the tokenizer that was asked for.
        libraries: versions that the exact numbers depend on.
        format: of the checkpoint.
    """

    state: TrainState
    model: dict[str, Any]
    training: dict[str, Any]
    corpus_fingerprint: str
    corpus_source: str
    run_id: str
    lineage: tuple[str, ...]
    micro_batch: int
    vocabulary: str = "bpe"
    libraries: dict[str, str] = field(default_factory=lambda: library_versions())
    format: int = FORMAT

    @property
    def own(self) -> frozenset[str]:
        """The run and those it continues."""
        return frozenset((*self.lineage, self.run_id))

    def as_json(self) -> dict[str, Any]:
        """JSON values; an infinite best loss is null."""
        facts = asdict(self)
        facts["lineage"] = list(self.lineage)
        if not math.isfinite(self.state.best_loss):
            facts["state"]["best_loss"] = None
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> SnapshotFacts:
        """The facts that `as_json` wrote; unknown ones are left out.

        Raises:
            ValueError: one is missing or of another kind.
        """
        if facts.get("format") != FORMAT:
            raise ValueError(f"format {facts.get('format')!r} instead of {FORMAT}")
        state = _typed(facts, "state", dict)
        best = state.get("best_loss")
        return cls(
            state=TrainState(
                step=_count(state, "step"),
                tokens_seen=_count(state, "tokens_seen"),
                best_loss=math.inf if best is None else _loss(state, "best_loss"),
                evaluated_step=max(-1, int(_typed(state, "evaluated_step", int))),
            ),
            model=_typed(facts, "model", dict),
            training=_typed(facts, "training", dict),
            corpus_fingerprint=_typed(facts, "corpus_fingerprint", str),
            corpus_source=_typed(facts, "corpus_source", str),
            run_id=_typed(facts, "run_id", str),
            lineage=_texts(facts, "lineage"),
            micro_batch=_count(facts, "micro_batch"),
            vocabulary=_typed(facts, "vocabulary", str),
            libraries=_typed(facts, "libraries", dict),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a run needs to continue.

    Args:
        tensors: by name: "model.PARAMETER", "optimizer.PARAMETER.exp_avg", and what else the loop keeps.
        facts: the rest.
    """

    tensors: Mapping[str, Tensor]
    facts: SnapshotFacts


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a checkpoint and the run that wants to continue it differ."""

    field: str
    saved: Any
    now: Any


def library_versions() -> dict[str, str]:
    """What the exact numbers of a run depend on beside the project."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def differences(
    facts: SnapshotFacts, model: Mapping[str, Any], training: Mapping[str, Any], corpus_fingerprint: str
) -> list[Difference]:
    """Why a checkpoint cannot be continued with this configuration; empty where it can.

    Args:
        facts: of the checkpoint.
        model: the model's configuration now, JSON values.
        training: the training's configuration now, JSON values.
        corpus_fingerprint: of the tokens now.
    """
    pairs = [
        *_fields("model", facts.model, model, set()),
        *_fields("training", facts.training, training, {*_FREE, *_BATCH}),
        Difference("effective batch", _rows(facts.training), _rows(training)),
        Difference("corpus", facts.corpus_fingerprint, corpus_fingerprint),
    ]
    return [pair for pair in pairs if pair.saved != pair.now]


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, not copied."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def built(config: ModelConfig, seed: int, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """A model on the CPU with saved weights.

    Raises:
        CheckpointError: the tensors are not those of such a model.
    """
    # Without memory first: a header that tells of a model larger than its tensors must not fill the machine.
    with torch.device("meta"):
        _require_fit(build(config, seed), tensors)
    model = build(config, seed)
    restore_model(model, tensors)
    return model


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved parameters and buffers into a model, on whatever device it is.

    Raises:
        CheckpointError: a name is missing or too many, or a shape or type differs.
    """
    saved = _require_fit(model, tensors)
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in saved.items()})


def _require_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that are a model's; an error where they are not this one's."""
    wanted = model_tensors(model)
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    for name in sorted(wanted.keys() ^ saved.keys()):
        raise CheckpointError(f"{name} is in only one of checkpoint and model", "use the model of that checkpoint")
    for name, tensor in saved.items():
        _require_like(name, tensor, wanted[name])
    return saved


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """An optimizer's running means and step counts, by the parameter's name, not copied.

    Args:
        optimizer: such as AdamW; all its state is tensors.
        parameters: names and parameters, as model.named_parameters() tells them.

    Raises:
        CheckpointError: the optimizer holds a parameter that has no name.
    """
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in _held(optimizer, parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]
) -> None:
    """Put saved running means and step counts into an optimizer, bit by bit; its settings stay as they are.

    Args:
        optimizer: of the same kind, with the same parameters, in any order and on any device.
        parameters: names and parameters, as model.named_parameters() tells them.
        tensors: of a snapshot; they are copied.

    Raises:
        CheckpointError: a saved state has no parameter, a part of one is missing, or a shape differs.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            saved.setdefault(name, {})[key] = tensor.clone()
    held = _held(optimizer, parameters)
    for name in sorted(saved.keys() - {name for name, _ in held}):
        raise CheckpointError(f"the checkpoint's optimizer knows {name}", "use the model of that checkpoint")
    # A parameter that no gradient ever reached has no state, then as now.
    state = {index: saved[name] for index, (name, _) in enumerate(held) if name in saved}
    if optimizer.state and held and not saved:
        raise CheckpointError(
            "the checkpoint holds no state of the optimizer: it is a model for use, not to be continued",
            "use another checkpoint, or --fresh",
        )
    for name, parameter in held:
        _require_state_like(name, saved.get(name, {}), optimizer.state.get(parameter) or {}, parameter)
    # torch itself knows where each value belongs: step counts on the CPU, or on the device for fused kinds.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _held(optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters with their names, in the optimizer's own order."""
    names = {id(parameter): name for name, parameter in parameters}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in names for parameter in held):
        raise CheckpointError("the optimizer holds a parameter that is not the model's", "name all its parameters")
    return [(names[id(parameter)], parameter) for parameter in held]


def _fields(kind: str, saved: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> list[Difference]:
    names = sorted((saved.keys() | now.keys()) - free)
    return [Difference(f"{kind}.{name}", saved.get(name), now.get(name)) for name in names]


def _rows(training: Mapping[str, Any]) -> int:
    return int(math.prod(training.get(name, 0) for name in _BATCH))


def _require_state_like(
    parameter_name: str, saved: Mapping[str, Tensor], allocated: Mapping[str, Tensor], parameter: Tensor
) -> None:
    """What a step would miss, or find in another form, is missed now: a step must not end in the middle."""
    if saved and allocated and saved.keys() != allocated.keys():
        told, wanted = (", ".join(sorted(keys)) for keys in (saved, allocated))
        raise CheckpointError(
            f"the checkpoint has {told} of optimizer.{parameter_name}, and {wanted} are needed",
            "use the trainer that saved it, or another checkpoint",
        )
    for key, tensor in saved.items():
        if key in allocated or key != "step":
            _require_like(f"optimizer.{parameter_name}.{key}", tensor, allocated.get(key, parameter))


def _require_like(name: str, saved: Tensor, wanted: Tensor) -> None:
    if (saved.shape, saved.dtype) != (wanted.shape, wanted.dtype):
        raise CheckpointError(
            f"{name} is {list(saved.shape)} {saved.dtype} in the checkpoint, {list(wanted.shape)} {wanted.dtype} here",
            "use the model of that checkpoint",
        )


def _typed(facts: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = facts.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _texts(facts: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = _typed(facts, name, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} holds what is no text")
    return tuple(values)


def _count(facts: Mapping[str, Any], name: str) -> int:
    value = _typed(facts, name, int)
    if not 0 <= value < _MOST:
        raise ValueError(f"{name} is {value!r:.40}")
    return int(value)


def _loss(facts: Mapping[str, Any], name: str) -> float:
    value = _typed(facts, name, (int, float))
    if (isinstance(value, int) and value >= _MOST) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r:.40}")
    return float(value)
