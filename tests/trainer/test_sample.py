"""Sampling: its own randomness, its bounds, and ready to stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kssm.config import model_config
from kssm.errors import BadUsage, Stopped
from kssm.model_blocks import KSSM
from kssm.models import build
from kssm.sample import sample

V, POSITIONS = 13, 6


def small_model(published: bool = False) -> KSSM:
    return build(model_config("v3", "tiny", V, hidden=8, layers=2, positions=POSITIONS, published=published), seed=0)


def test_a_sample_has_so_many_tokens_of_the_vocabulary_and_not_the_prompt() -> None:
    drawn = sample(small_model(), [1, 2], 20)
    assert len(drawn) == 20
    assert all(0 <= token < V for token in drawn)


@pytest.mark.parametrize("published", [False, True])
def test_the_seed_decides_the_sample(published: bool) -> None:
    model = small_model(published)
    assert sample(model, [1], 30, seed=5) == sample(model, [1], 30, seed=5)
    assert sample(small_model(), [1], 30, seed=5) != sample(small_model(), [1], 30, seed=6)


def test_global_random_state_stays_as_it_is() -> None:
    before = torch.get_rng_state()
    sample(small_model(), [1], 5)
    assert torch.equal(before, torch.get_rng_state())


def test_temperature_zero_and_top_1_take_the_likeliest_token() -> None:
    model = small_model()
    hidden = model(torch.tensor([[4]]), None).hidden_BSD
    likeliest = int(model.logits(hidden)[0, -1].argmax())
    assert sample(model, [4], 1, temperature=0) == [likeliest]
    assert sample(model, [4], 1, top_k=1) == [likeliest]


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-30])
def test_a_temperature_of_almost_nothing_takes_the_likeliest_token(temperature: float) -> None:
    model = small_model()
    assert sample(model, [4], 5, temperature=temperature) == sample(model, [4], 5, temperature=0)


def test_top_k_keeps_draws_among_the_likeliest() -> None:
    model = small_model()
    best = set(model.logits(model(torch.tensor([[4]]), None).hidden_BSD)[0, -1].topk(3).indices.tolist())
    drawn = {sample(model, [4], 1, top_k=3, seed=seed)[0] for seed in range(40)}
    assert drawn == best


def test_a_context_longer_than_the_positions_is_cropped_to_its_end() -> None:
    model, prompt = small_model(), [5, 6, 7, 8, 9, 10, 11, 12]
    assert sample(model, prompt, 1, temperature=0) == sample(model, prompt[-POSITIONS:], 1, temperature=0)


def test_no_token_is_asked_for_and_none_comes() -> None:
    assert sample(small_model(), [1], 0) == []


def test_a_stop_is_answered_between_tokens() -> None:
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        sample(small_model(), [1], 10, should_stop=lambda: next(answers))


@pytest.mark.parametrize(
    ("prompt", "settings", "reason"),
    [
        ([], {}, "no token to continue"),
        ([V], {}, "outside the vocabulary of 13"),
        ([-1], {}, "outside the vocabulary of 13"),
        ([1], {"temperature": -0.1}, "temperature is -0.1"),
        ([1], {"top_k": 0}, "top_k is 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prompt: list[int], settings: dict[str, float], reason: str) -> None:
    with pytest.raises(BadUsage, match=reason):
        sample(small_model(), prompt, 5, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wish",
    [{"temperature": value} for value in (-2.0, math.nan, math.inf)]
    + [{"seed": value} for value in (-2, 2**63)]
    + [{"top_k": value} for value in (-2, 0)],
)
def test_a_draw_that_cannot_be_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(BadUsage):
        sample(small_model(), [1], 1, **wish)
