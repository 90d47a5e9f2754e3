"""A snapshot's facts, what may differ on a resume, and the exact way back into a model and an optimizer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kssm.config import as_facts, model_config, train_config
from kssm.errors import CheckpointError
from kssm.snapshot import (
    Difference,
    SnapshotFacts,
    TrainState,
    differences,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
)

MODEL = model_config("v3", "tiny", 512, hidden=96)
TRAINING = train_config("v3", "tiny", batch_size=8, gradient_accumulation=1, seq_length=256, lr=4e-3, seed=1337)
FACTS = SnapshotFacts(
    state=TrainState(step=7, tokens_seen=14336, best_loss=5.25, evaluated_step=5),
    model=as_facts(MODEL),
    training=as_facts(TRAINING),
    corpus_fingerprint="c0ffee",
    corpus_source="the plays",
    run_id="run-2",
    lineage=("run-1", "run-2"),
    micro_batch=8,
    vocabulary="bpe:512",
)


LOSSES = st.floats(allow_nan=False, min_value=0)


@given(step=st.integers(0, 2**53), tokens=st.integers(0, 2**60), best=LOSSES)
def test_facts_come_back_from_json_exactly(step: int, tokens: int, best: float) -> None:
    facts = replace(FACTS, state=TrainState(step, tokens, best, step - 1))
    assert SnapshotFacts.from_json(json.loads(json.dumps(facts.as_json(), allow_nan=False))) == facts


def test_facts_of_a_later_version_that_are_unknown_are_left_out() -> None:
    assert SnapshotFacts.from_json({**FACTS.as_json(), "mood": "good"}) == FACTS


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"format": None}, {"state": None}, {"state": {"step": -1, "tokens_seen": 0}},
        {"state": {"step": True, "tokens_seen": 0}}, {"state": {"step": 1.5, "tokens_seen": 0}}, {"model": []},
        {"run_id": 7}, {"lineage": "run-1"}, {"micro_batch": "8"}, {"corpus_fingerprint": None}, {"libraries": None},
        {"state": {"step": 1, "tokens_seen": 0, "best_loss": "low"}},
    ],
    ids=str,
)  # fmt: skip
def test_facts_that_are_not_facts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is|format"):
        SnapshotFacts.from_json({**FACTS.as_json(), **change})


def test_the_run_and_those_it_continues_are_its_own() -> None:
    assert FACTS.own == {"run-1", "run-2"}


def compared(model: dict[str, Any], training: dict[str, Any], corpus: str = "c0ffee") -> list[Difference]:
    now_model, now_training = replace(MODEL, **model), replace(TRAINING, **training)
    return differences(FACTS, as_facts(now_model), as_facts(now_training), corpus)


@pytest.mark.parametrize(
    "training",
    [
        {}, {"max_steps": 9}, {"save_interval": 9}, {"eval_interval": 9}, {"log_interval": 9}, {"eval_batches": 9},
        {"keep": 9}, {"batch_size": 4, "gradient_accumulation": 2}, {"batch_size": 1, "gradient_accumulation": 8},
    ],
    ids=str,
)  # fmt: skip
def test_what_touches_no_gradient_may_differ(training: dict[str, Any]) -> None:
    assert compared({}, training) == []


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [
        ({"hidden": 128}, {}, ("model.hidden", 96, 128)),
        ({"bistable": False}, {}, ("model.bistable", True, False)),
        ({}, {"lr": 1e-3}, ("training.lr", 4e-3, 1e-3)),
        ({}, {"seed": 1}, ("training.seed", 1337, 1)),
        ({}, {"seq_length": 128}, ("training.seq_length", 256, 128)),
        ({}, {"batch_size": 16}, ("effective batch", 8, 16)),
    ],
    ids=str,
)
def test_what_changes_the_run_is_named_with_both_values(
    model: dict[str, Any], training: dict[str, Any], expected: tuple[str, Any, Any]
) -> None:
    assert compared(model, training) == [Difference(*expected)]


def test_another_corpus_is_named() -> None:
    assert compared({}, {}, "decaf") == [Difference("corpus", "c0ffee", "decaf")]


def test_a_field_that_a_checkpoint_does_not_have_is_a_difference() -> None:
    found = differences(FACTS, {**FACTS.model, "spin": 1}, FACTS.training, FACTS.corpus_fingerprint)
    assert found == [Difference("model.spin", None, 1)]


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Linear(6, 8)
        self.two = nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.two(torch.tanh(self.one(x)))


def adamw(model: Net, *, swapped: bool = False, **options: Any) -> torch.optim.AdamW:
    groups = [{"params": [model.one.weight, model.two.weight], "weight_decay": 0.1}]
    groups.append({"params": [model.one.bias, model.two.bias, model.unused], "weight_decay": 0.0})
    return torch.optim.AdamW(groups[::-1] if swapped else groups, lr=1e-2, **options)


def advance(model: Net, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_restored_run_goes_on_bit_by_bit(options: dict[str, bool], swapped: bool) -> None:
    model = Net(1)
    optimizer = adamw(model, **options)
    advance(model, optimizer, range(5))
    saved = {**model_tensors(model), **optimizer_tensors(optimizer, model.named_parameters())}
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    assert "optimizer.one.weight.exp_avg" in saved
    advance(model, optimizer, range(5, 12))

    again = Net(2)
    other = adamw(again, swapped=swapped, **options)
    restore_model(again, saved)
    restore_optimizer(other, again.named_parameters(), saved)
    advance(again, other, range(5, 12))
    for name, tensor in model_tensors(model).items():
        assert torch.equal(model_tensors(again)[name], tensor), name
    state = optimizer_tensors(other, again.named_parameters())
    for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items():
        assert torch.equal(state[name], tensor), name


def test_restoring_copies_and_keeps_the_settings_of_now() -> None:
    model = Net(1)
    optimizer = adamw(model)
    advance(model, optimizer, range(2))
    saved = optimizer_tensors(optimizer, model.named_parameters())
    again = Net(1)
    other = adamw(again)
    other.param_groups[0]["lr"] = 0.5
    restore_optimizer(other, again.named_parameters(), saved)
    assert other.param_groups[0]["lr"] == 0.5
    kept = saved["optimizer.one.weight.exp_avg"].clone()
    advance(again, other, range(2, 4))
    assert torch.equal(saved["optimizer.one.weight.exp_avg"], kept)


def test_an_optimizer_before_its_first_step_has_nothing_to_restore() -> None:
    model = Net(1)
    optimizer = adamw(model)
    assert optimizer_tensors(optimizer, model.named_parameters()) == {}
    restore_optimizer(optimizer, model.named_parameters(), {})
    advance(model, optimizer, range(1))


def test_state_that_does_not_fit_is_refused_by_name() -> None:
    model = Net(1)
    optimizer = adamw(model)
    advance(model, optimizer, range(1))
    saved = {**model_tensors(model), **optimizer_tensors(optimizer, model.named_parameters())}
    moved = {**saved, "optimizer.three.exp_avg": saved["optimizer.one.bias.exp_avg"]}
    with pytest.raises(CheckpointError, match="knows three"):
        restore_optimizer(optimizer, model.named_parameters(), moved)
    with pytest.raises(CheckpointError, match=r"one\.bias\.exp_avg is \[6\]"):
        restore_optimizer(optimizer, model.named_parameters(), {**saved, "optimizer.one.bias.exp_avg": torch.ones(6)})
    with pytest.raises(CheckpointError, match="not the model's"):
        optimizer_tensors(optimizer, [("one.weight", model.one.weight)])
    with pytest.raises(CheckpointError, match=r"model\.one\.bias is \[6\]"):
        restore_model(model, {**saved, "model.one.bias": torch.ones(6)})
    with pytest.raises(CheckpointError, match=r"model\.three is in only one"):
        restore_model(model, {**saved, "model.three": torch.ones(6)})
    with pytest.raises(CheckpointError, match=r"model\.seen is in only one"):
        restore_model(model, {name: tensor for name, tensor in saved.items() if name != "model.seen"})


def test_a_model_for_use_is_not_continued_as_if_it_had_an_optimizer_and_half_a_state_is_told() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = optimizer_tensors(optimizer, model.named_parameters())
    with pytest.raises(CheckpointError, match="no state of the optimizer"):
        restore_optimizer(optimizer, model.named_parameters(), {"model.weight": torch.ones(2, 3)})
    for missing in saved:
        with pytest.raises(CheckpointError, match="are needed"):
            restore_optimizer(optimizer, model.named_parameters(), {k: v for k, v in saved.items() if k != missing})
    with pytest.raises(CheckpointError, match="here"):
        restore_optimizer(optimizer, model.named_parameters(), {**saved, "optimizer.bias.step": torch.zeros(2)})
    restore_optimizer(optimizer, model.named_parameters(), saved)
