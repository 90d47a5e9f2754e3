"""What to train, from what a person said, what a checkpoint says, and the presets. All pure.

A flag that was not given follows the checkpoint that is continued, and the preset where there is none. A flag that
was given and contradicts the checkpoint is refused with the fields that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kssm.config import ModelConfig, Size, TrainConfig, as_facts, model_config, of_size, require_fit, train_config
from kssm.errors import BadUsage, CheckpointMismatch
from kssm.snapshot import SnapshotFacts, differences
from kssm.wishes import Wishes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained."""

    model: ModelConfig
    training: TrainConfig


def plan_fresh(wishes: Wishes, size: Size, vocabulary: int) -> Plan:
    """The plan of a run that starts at step 0.

    Args:
        wishes: what a person said.
        size: the preset, said or chosen for the device.
        vocabulary: V of the corpus.

    Raises:
        BadUsage: a value that cannot work.
    """
    model = model_config(wishes.model, size, vocabulary, **wishes.shape)
    return _checked(Plan(model, train_config(wishes.model, size, **wishes.training)))


def plan_continued(wishes: Wishes, facts: SnapshotFacts, fingerprint: str, path: Path) -> Plan:
    """The plan of a run that continues a checkpoint.

    Args:
        wishes: what a person said.
        facts: of the checkpoint.
        fingerprint: of the corpus now.
        path: of the checkpoint, for the message.

    Raises:
        CheckpointMismatch: it is of another model, configuration or corpus; names the fields.
        BadUsage: a value that cannot work.
    """
    saved_model, saved_training = _configs(facts, path)
    if wishes.model == saved_model.name:
        model = replace(of_size(saved_model, wishes.size) if wishes.size else saved_model, **wishes.shape)
    else:
        model = model_config(wishes.model, wishes.size or "tiny", saved_model.vocabulary, **wishes.shape)
    training = replace(saved_training, **_same_rows(wishes.training, saved_training))
    # What a version that wrote the checkpoint did not know of yet is as it is by default.
    facts = replace(facts, model=as_facts(saved_model), training=as_facts(saved_training))
    differing = differences(facts, as_facts(model), as_facts(training), fingerprint)
    if differing:
        told = "; ".join(f"{d.field}: saved {d.saved}, now {d.now}" for d in differing)
        raise CheckpointMismatch(
            f"{path} is of another run: {told}",
            "use the same flags and text to continue it, --fresh to archive it and start anew, or another --output-dir",
        )
    return _checked(Plan(model, training))


def require_vocabulary(path: Path, model: ModelConfig, vocabulary: int) -> None:
    """Raise CheckpointMismatch where a model has not exactly the tokens of its text.

    Args:
        path: of the checkpoint, for the message.
        model: of the checkpoint.
        vocabulary: V of the corpus.
    """
    if model.vocabulary != vocabulary:
        raise CheckpointMismatch(
            f"{path} has a vocabulary of {model.vocabulary}, and its text one of {vocabulary}", "use another checkpoint"
        )


def _same_rows(said: Mapping[str, Any], saved: TrainConfig) -> dict[str, Any]:
    """A new micro-batch alone keeps the effective batch, and what evaluations read, where it divides them."""
    wanted = dict(said)
    if "batch_size" in said:
        for name, rows in (("gradient_accumulation", saved.rows), ("eval_batches", saved.held_out_rows)):
            if name not in said and rows % said["batch_size"] == 0:
                wanted[name] = rows // said["batch_size"]
    return wanted


def _configs(facts: SnapshotFacts, path: Path) -> tuple[ModelConfig, TrainConfig]:
    try:
        return ModelConfig(**facts.model), TrainConfig(**facts.training)
    except (TypeError, BadUsage) as error:
        raise CheckpointMismatch(
            f"{path} was saved by another version of the trainer: {error}", "use that version, or --fresh"
        ) from None


def _checked(plan: Plan) -> Plan:
    require_fit(plan.model, plan.training)
    return plan
