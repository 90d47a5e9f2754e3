"""Files that an earlier version wrote must stay readable: weeks of somebody's work are in them."""

from __future__ import annotations

from pathlib import Path

from kssm.checkpoint import load
from kssm.config import ModelConfig, TrainConfig
from kssm.models import build
from kssm.snapshot import TrainState, restore_model

FILES = Path(__file__).with_name("files")


def test_a_checkpoint_of_version_0_1_is_read_and_fits_its_model() -> None:
    found = load(FILES / "checkpoint_2.safetensors").snapshot
    facts = found.facts
    assert facts.state == TrainState(step=2, tokens_seen=512, best_loss=3.25, evaluated_step=2)
    assert facts.lineage == ("20261123-000000-00000000", "20261123-000000-00000001")
    assert TrainConfig(**facts.training).max_steps == 4
    restore_model(build(ModelConfig(**facts.model), seed=7), found.tensors)
