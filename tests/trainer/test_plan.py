"""What is trained follows from what was said, the checkpoint and the presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kssm.config import as_facts, model_config, train_config
from kssm.errors import BadUsage, CheckpointMismatch
from kssm.plan import Plan, plan_continued, plan_fresh
from kssm.snapshot import SnapshotFacts, TrainState
from kssm.wishes import Wishes

PATH = Path("checkpoint_10.safetensors")


def facts_of(plan: Plan) -> SnapshotFacts:
    return SnapshotFacts(
        state=TrainState(10, 1000), model=as_facts(plan.model), training=as_facts(plan.training),
        corpus_fingerprint="f", corpus_source="", run_id="r", lineage=("r",), micro_batch=1,
    )  # fmt: skip


SMALL = Plan(model_config("v3", "small", 300), train_config("v3", "small", lr=1e-3))


def test_a_fresh_run_takes_the_preset_and_what_was_said() -> None:
    plan = plan_fresh(Wishes("v3", training={"lr": 5e-4, "max_steps": 7}), "tiny", 300)
    assert plan.model == model_config("v3", "tiny", 300)
    assert (plan.training.lr, plan.training.max_steps) == (5e-4, 7)


def test_without_flags_a_continued_run_is_what_the_checkpoint_says() -> None:
    assert plan_continued(Wishes("v3"), facts_of(SMALL), "f", PATH) == SMALL


def test_more_steps_may_be_asked_of_a_continued_run() -> None:
    plan = plan_continued(Wishes("v3", training={"max_steps": 99_999}), facts_of(SMALL), "f", PATH)
    assert plan.training.max_steps == 99_999


def test_the_size_that_is_typed_again_leaves_the_rest_of_the_shape_as_it_was() -> None:
    shape = {"dropout": 0.2, "coupled": False, "attention_every": 2}
    begun = plan_fresh(Wishes("v4", "small", shape=shape), "small", 300)
    assert plan_continued(Wishes("v4", "small"), facts_of(begun), "f", PATH) == begun


def test_a_smaller_micro_batch_keeps_the_effective_batch() -> None:
    plan = plan_continued(Wishes("v3", training={"batch_size": 2}), facts_of(SMALL), "f", PATH)
    assert (plan.training.batch_size, plan.training.rows) == (2, SMALL.training.rows)


@pytest.mark.parametrize(("said", "read"), [({"batch_size": 2}, 160), ({"batch_size": 2, "eval_batches": 3}, 6)])
def test_a_smaller_micro_batch_leaves_the_held_out_text_of_evaluations_as_it_was(
    said: dict[str, int], read: int
) -> None:
    assert SMALL.training.batch_size * SMALL.training.eval_batches == 160
    training = plan_continued(Wishes("v3", training=said), facts_of(SMALL), "f", PATH).training
    assert training.batch_size * training.eval_batches == read


@pytest.mark.parametrize(
    ("wishes", "fingerprint", "field"),
    [
        (Wishes("v3", training={"lr": 9.0}), "f", "training.lr: saved 0.001, now 9.0"),
        (Wishes("v3", size="tiny"), "f", "model.hidden: saved 256, now 96"),
        (Wishes("v2"), "f", "model.name: saved v3, now v2"),
        (Wishes("v3", shape={"bistable": False}), "f", "model.bistable: saved True, now False"),
        (Wishes("v3"), "g", "corpus: saved f, now g"),
        (Wishes("v3", training={"gradient_accumulation": 1}), "f", "effective batch"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused_by_name(wishes: Wishes, fingerprint: str, field: str) -> None:
    with pytest.raises(CheckpointMismatch, match="is of another run") as refused:
        plan_continued(wishes, facts_of(SMALL), fingerprint, PATH)
    assert field in refused.value.what
    assert "--fresh" in refused.value.next_step


def test_a_checkpoint_of_another_version_is_refused() -> None:
    facts = facts_of(SMALL)
    facts.model["unheard_of"] = 1
    with pytest.raises(CheckpointMismatch, match="another version"):
        plan_continued(Wishes("v3"), facts, "f", PATH)


def test_a_checkpoint_from_before_v4_continues_as_it_was() -> None:
    facts = facts_of(SMALL)
    for field in ("group", "coupled", "rotating", "attention_every"):
        del facts.model[field]
    del facts.training["carry_state"]
    assert plan_continued(Wishes("v3", training={"max_steps": 9}), facts, "f", PATH) == Plan(
        SMALL.model, replace(SMALL.training, max_steps=9)
    )


V4 = Plan(model_config("v4", "tiny", 300), train_config("v4", "tiny", carry_state=True))


def test_a_carried_run_goes_on_carrying_without_being_told() -> None:
    assert plan_continued(Wishes("v4"), facts_of(V4), "f", PATH) == V4


def test_whether_the_state_is_carried_is_not_changed_half_way() -> None:
    plain = replace(V4, training=replace(V4.training, carry_state=False))
    with pytest.raises(CheckpointMismatch, match=r"training\.carry_state: saved False, now True"):
        plan_continued(Wishes("v4", training={"carry_state": True}), facts_of(plain), "f", PATH)


@pytest.mark.parametrize(("shape", "field"), [
    ({"coupled": False}, "model.coupled: saved True, now False"),
    ({"rotating": False}, "model.rotating: saved True, now False"),
    ({"attention_every": 3}, "model.attention_every: saved 0, now 3"),
])  # fmt: skip
def test_an_ablation_is_another_model(shape: dict[str, object], field: str) -> None:
    with pytest.raises(CheckpointMismatch) as refused:
        plan_continued(Wishes("v4", shape=shape), facts_of(V4), "f", PATH)
    assert field in refused.value.what


def test_a_sequence_longer_than_the_positions_is_refused_before_anything_is_built() -> None:
    with pytest.raises(BadUsage, match="positions"):
        plan_fresh(Wishes("v3", training={"seq_length": 4096}), "tiny", 300)
