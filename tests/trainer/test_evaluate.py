"""Evaluation: means over tokens, repeatable, and ready to stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kssm.config import TrainConfig, model_config
from kssm.device import Compute
from kssm.errors import KssmError, Stopped
from kssm.evaluate import evaluate
from kssm.model_blocks import KSSM
from kssm.models import build

V, S = 13, 6
CPU = Compute(torch.device("cpu"))
TRAIN = TrainConfig(batch_size=2, gradient_accumulation=1, seq_length=S, max_steps=10, warmup_steps=1, lr=1e-3)


def small_model(name: str = "v3", published: bool = False) -> KSSM:
    return build(model_config(name, "tiny", V, hidden=8, layers=2, positions=S, published=published), seed=0)  # type: ignore[arg-type]


def batches(*sizes: int) -> list[np.ndarray]:
    return [np.random.default_rng(rows).integers(0, V, (rows, S + 1)).astype(np.uint16) for rows in sizes]


def test_an_evaluation_tells_the_loss_and_the_oscillators() -> None:
    result = evaluate(small_model(), batches(2, 2), CPU, TRAIN)
    assert result.ce == pytest.approx(math.log(V), abs=0.2)
    assert result.perplexity == pytest.approx(math.exp(result.ce))
    assert result.loss != result.ce
    assert 0 <= result.order_parameter <= 1
    assert result.u is not None
    assert result.tokens == 4 * S


def test_v2_has_no_u() -> None:
    result = evaluate(small_model("v2"), batches(2), CPU, TRAIN)
    assert result.u is None
    assert result.loss == result.ce


def test_each_token_counts_the_same_however_it_is_batched() -> None:
    rows = batches(6)[0]
    whole = evaluate(small_model(), [rows], CPU, TRAIN)
    parts = evaluate(small_model(), [rows[:5], rows[5:]], CPU, TRAIN)
    assert parts.ce == pytest.approx(whole.ce, rel=1e-6)
    assert parts.tokens == whole.tokens


@pytest.mark.parametrize("published", [False, True])
def test_the_same_evaluation_twice_gives_the_same_numbers(published: bool) -> None:
    model = small_model(published=published)
    assert evaluate(model, batches(2, 3), CPU, TRAIN) == evaluate(model, batches(2, 3), CPU, TRAIN)


def test_the_published_form_is_noisy_from_batch_to_batch() -> None:
    rows = batches(2)[0]
    once, thrice = (evaluate(small_model(published=True), [rows] * times, CPU, TRAIN).ce for times in (1, 3))
    assert once != pytest.approx(thrice, rel=1e-6)


def test_evaluating_leaves_random_state_gradients_and_weights_alone() -> None:
    model, before = small_model(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, batches(2), CPU, TRAIN)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_stop_is_answered_between_batches() -> None:
    asked: list[int] = []

    def third_time() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Stopped):
        evaluate(small_model(), batches(1, 1, 1, 1), CPU, TRAIN, third_time)
    assert len(asked) == 3


def test_no_batch_is_an_error_with_a_next_step() -> None:
    with pytest.raises(KssmError, match="no batch") as refused:
        evaluate(small_model(), [], CPU, TRAIN)
    assert refused.value.next_step


def test_a_perplexity_beyond_numbers_is_infinite() -> None:
    model = small_model()
    with torch.no_grad():
        model.embedding.weight *= 1e6
    assert evaluate(model, batches(2), CPU, TRAIN).perplexity == math.inf
