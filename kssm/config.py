"""Frozen configurations of the models and of a training run, their presets and their published defaults.

Symbols: V vocabulary, D hidden size, L layers, N oscillators, H harmonics, S sequence length.
Every value is checked on construction, and the message gives the reason.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kssm.errors import BadUsage

ModelName = Literal["v2", "v3", "v4"]
Size = Literal["tiny", "small", "medium", "large"]
Precision = Literal["auto", "float32", "bfloat16"]
ReadoutName = Literal["auto", "portable", "native", "triton", "metal"]
ScanName = Literal["auto", "loop", "chunked", "native"]


_MOST = 1 << 32
_MOST_LAYERS = 4096
_MOST_STEPS = 1 << 53
_MOST_PAIRS = 1_000_000
_LARGEST = sys.float_info.max
_OF_STEPS = {"max_steps", "eval_interval", "save_interval", "log_interval"}


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise BadUsage(reason, "correct the value and start again")


def _require_count(field: str, value: object) -> None:
    _require(isinstance(value, int) and value >= 1, f"{field} is {value}; it counts things, so it is 1 or more")
    most = _MOST_STEPS if field in _OF_STEPS else _MOST
    _require(isinstance(value, int) and value <= most, f"{field} is {value}; {most} at most")


def byte_pairs(word: str, default: int = 8192) -> int | None:
    """V of a vocabulary of byte pairs by its word on the command line, bpe or bpe:SIZE; None for another word.

    Raises:
        BadUsage: no vocabulary has that size.
    """
    kind, _, size = word.partition(":")
    if kind != "bpe" or not (size.isdecimal() or not size):
        return None
    pairs = default if not size else int(size) if len(size) < 20 else _MOST
    _require(
        257 <= pairs <= _MOST_PAIRS,
        f"a byte-pair vocabulary of {size[:20]}; 257 (an end and 256 bytes) to {_MOST_PAIRS} can be",
    )
    return pairs


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a K-SSM.

    Args:
        name: which model: v2 and v3 follow the published equations, v4 is this project's own.
        vocabulary: V, number of token ids.
        hidden: D, width of the residual stream.
        layers: L, number of blocks.
        oscillators: N, phases per bank.
        harmonics: H, order parameters Z_1..Z_H read out per bank (v3 only; 1 for the others).
        positions: number of learned positions, the longest sequence; 0 for v4, which has none and reads any length.
        dropout: in training, the share of the embedding's and of both halves' outputs that is dropped; v3 has none.
        bistable: v3 clamps u to [0.1, 10]; False is the published monostable ablation.
        published: the published initial values and noise also in evaluation, for comparison.
        group: oscillators of v4 that share a mean field.
        coupled: v4's mean field; False is the ablation without it.
        rotating: v4's rotation; False is the ablation with real gates.
        attention_every: v4 has causal attention in the place of oscillators in every n-th block; 0 has none.
        keeps: what v4's most faithful oscillators keep of their state from one token to the next at first; to count
            through a thousand tokens they must lose next to nothing, 0.999999.
        coupling_bias: added to the logit of v4's coupling; at 0 k is 0.12 at first, and differences within a group are
            gone after ten tokens until the model has learned to keep them.
    """

    name: ModelName
    vocabulary: int
    hidden: int
    layers: int
    oscillators: int
    harmonics: int
    positions: int
    dropout: float
    bistable: bool = True
    published: bool = False
    group: int = 16
    coupled: bool = True
    rotating: bool = True
    attention_every: int = 0
    keeps: float = 0.995
    coupling_bias: float = 0.0

    def __post_init__(self) -> None:
        _require(self.name in _SHAPES, f"model {self.name!r} is not one of {', '.join(_SHAPES)}")
        for field in ("vocabulary", "hidden", "layers", "oscillators", "harmonics", "group"):
            value = getattr(self, field)
            _require_count(field, value)
        _require(self.layers <= _MOST_LAYERS, f"layers is {self.layers}; {_MOST_LAYERS} at most")
        _require(self.vocabulary >= 2, "a vocabulary of one token leaves nothing to predict")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it is a probability, and at 1 nothing passes")
        _require(self.name != "v3" or self.dropout == 0, "v3 has no dropout; v2 and v4 have")
        self._require_of_v4() if self.name == "v4" else self._require_of_published()

    def _require_of_published(self) -> None:
        _require(self.positions >= 1, f"positions is {self.positions}; {self.name} learns one for each place")
        _require(self.coupled and self.rotating and not self.attention_every, f"{self.name} is as published")

    def _require_of_v4(self) -> None:
        _require(self.positions == 0, f"positions is {self.positions}; v4 has none")
        _require(not self.published, "v4 is not a published model")
        _require(self.attention_every >= 0, f"attention_every is {self.attention_every}; it counts blocks")
        _require(self.attention_every != 1, "attention in every block would leave no oscillators")
        _require(
            self.attention_every <= self.layers,
            f"attention_every is {self.attention_every}, and of {self.layers} blocks none would have attention",
        )
        _require(0.3 < self.keeps < 1, f"keeps is {self.keeps}; it lies between 0.3, what the others keep, and 1")
        _require(
            self.oscillators % self.group == 0, f"{self.oscillators} oscillators are no whole groups of {self.group}"
        )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a run trains.

    Args:
        batch_size: sequences per micro-batch.
        gradient_accumulation: micro-batches per optimizer step; their product is the effective batch.
        seq_length: S, tokens per sequence.
        max_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warm-up.
        lr: peak learning rate.
        weight_decay: AdamW's decoupled decay.
        beta1: AdamW's decay of the mean gradient.
        beta2: AdamW's decay of the squared gradient.
        clip: largest global gradient norm.
        lambda_reg: weight of v3's regulariser.
        lambda1: weight of its determinant part.
        lambda2: weight of its log u part.
        seed: seed of initial values, data order and noise.
        eval_interval: steps between evaluations.
        eval_batches: batches per evaluation.
        save_interval: steps between checkpoints.
        log_interval: steps between log lines.
        keep: how many of the newest checkpoints stay, beside the best.
        carry_state: each row of a batch goes on where the step before left it, with the model's state; v4 alone.
    """

    batch_size: int
    gradient_accumulation: int
    seq_length: int
    max_steps: int
    warmup_steps: int
    lr: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    lambda_reg: float = 0.5
    lambda1: float = 0.1
    lambda2: float = 0.5
    seed: int = 1337
    eval_interval: int = 500
    eval_batches: int = 20
    save_interval: int = 1000
    log_interval: int = 20
    keep: int = 3
    carry_state: bool = False

    def __post_init__(self) -> None:
        for field in (
            "batch_size", "gradient_accumulation", "seq_length", "max_steps", "eval_interval", "eval_batches",
            "save_interval", "log_interval", "keep",
        ):  # fmt: skip
            value = getattr(self, field)
            _require_count(field, value)
        _require(self.rows <= _MOST, f"an effective batch of {self.rows} sequences; {_MOST} at most")
        _require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it cannot be negative")
        _require(self.warmup_steps <= _MOST_STEPS, f"warmup_steps is {self.warmup_steps}; {_MOST_STEPS} at most")
        _require(self.lr > 0, f"lr is {self.lr}; without a positive rate nothing is learned")
        _require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; a negative one would grow the weights")
        _require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "AdamW's betas lie in [0, 1)")
        _require(self.clip > 0, f"clip is {self.clip}; a gradient norm limit is positive")
        _require(self.lambda_reg >= 0, f"lambda_reg is {self.lambda_reg}; it is a weight, 0 or more")
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; it lies in [0, 2^63)")
        for field in ("lr", "weight_decay", "clip", "lambda_reg", "lambda1", "lambda2"):
            value = getattr(self, field)
            _require(-_LARGEST <= value <= _LARGEST, f"{field} is {value}; it is a finite number")

    @property
    def rows(self) -> int:
        """Sequences per optimizer step, the effective batch."""
        return self.batch_size * self.gradient_accumulation

    @property
    def held_out_rows(self) -> int:
        """Sequences per evaluation."""
        return self.batch_size * self.eval_batches


_SHAPES: dict[ModelName, dict[Size, dict[str, int]]] = {
    "v2": {
        "tiny": {"hidden": 96, "layers": 3, "oscillators": 48, "positions": 512},
        "small": {"hidden": 256, "layers": 4, "oscillators": 128, "positions": 512},
        "medium": {"hidden": 384, "layers": 6, "oscillators": 192, "positions": 512},
        "large": {"hidden": 512, "layers": 8, "oscillators": 256, "positions": 1024},
    },
    "v3": {
        "tiny": {"hidden": 96, "layers": 3, "oscillators": 48, "harmonics": 16, "positions": 1024},
        "small": {"hidden": 256, "layers": 4, "oscillators": 128, "harmonics": 32, "positions": 1024},
        "medium": {"hidden": 384, "layers": 6, "oscillators": 192, "harmonics": 32, "positions": 1024},
        "large": {"hidden": 512, "layers": 8, "oscillators": 256, "harmonics": 32, "positions": 1024},
    },
    "v4": {
        "tiny": {"hidden": 96, "layers": 3, "oscillators": 48, "positions": 0},
        "small": {"hidden": 256, "layers": 4, "oscillators": 128, "positions": 0},
        "medium": {"hidden": 384, "layers": 6, "oscillators": 192, "positions": 0},
        "large": {"hidden": 512, "layers": 8, "oscillators": 256, "positions": 0},
    },
}

_TRAINING: dict[ModelName, TrainConfig] = {
    "v2": TrainConfig(
        batch_size=16, gradient_accumulation=4, seq_length=256, max_steps=20_000, warmup_steps=1_000, lr=3e-4,
        lambda_reg=0.0, save_interval=500, eval_interval=500, log_interval=25,
    ),
    "v3": TrainConfig(
        batch_size=8, gradient_accumulation=8, seq_length=512, max_steps=10_000, warmup_steps=1_000, lr=4e-4,
        beta2=0.999,
    ),
    "v4": TrainConfig(
        batch_size=8, gradient_accumulation=4, seq_length=256, max_steps=10_000, warmup_steps=100, lr=3e-3,
        beta2=0.99, lambda_reg=0.0,
    ),
}  # fmt: skip

# On two CPU cores the published batch takes a minute a step; tiny is for minutes, not weeks.
_TINY: dict[str, Any] = {
    "batch_size": 4, "gradient_accumulation": 1, "seq_length": 256, "max_steps": 1_000, "warmup_steps": 50, "lr": 1e-2,
    "beta2": 0.95, "eval_interval": 100, "eval_batches": 10, "save_interval": 100, "log_interval": 10,
}  # fmt: skip


def model_config(name: ModelName, size: Size, vocabulary: int, **changes: Any) -> ModelConfig:
    """The preset shape of a model, with changes by field name."""
    shape: dict[str, Any] = {"harmonics": 1, "dropout": 0.1 if name == "v2" else 0.0, **_SHAPES[name][size], **changes}
    return ModelConfig(name=name, vocabulary=vocabulary, **shape)


def of_size(config: ModelConfig, size: Size) -> ModelConfig:
    """The same kind of model in the shape of a preset."""
    shape: dict[str, Any] = {**_SHAPES[config.name][size]}
    return replace(config, **shape)


def preset_name(config: ModelConfig) -> str:
    """The size whose shape this is; "own" when it is none's."""
    for size, shape in _SHAPES[config.name].items():
        if all(getattr(config, field) == value for field, value in shape.items()):
            return size
    return "own"


def train_config(name: ModelName, size: Size, **changes: Any) -> TrainConfig:
    """The preset training of a model, with changes by field name."""
    tiny = _TINY if size == "tiny" else {}
    return replace(_TRAINING[name], **{**tiny, **changes})


def require_fit(model: ModelConfig, training: TrainConfig) -> None:
    """Raise BadUsage where a model cannot be trained so."""
    if model.positions and training.seq_length > model.positions:
        raise BadUsage(
            f"--seq-length {training.seq_length} is longer than the model's {model.positions} positions",
            f"use --seq-length {model.positions} or less",
        )
    if training.carry_state and model.name != "v4":
        raise BadUsage(
            f"--carry-state: {model.name} remembers nothing from one token to the next",
            "leave it out, or train v4",
        )


def as_facts(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, as it stands in a checkpoint."""
    return asdict(config)
