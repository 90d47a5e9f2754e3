"""The learning rate: warm-up, cosine, ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.config import TrainConfig
from kssm.schedule import lr_at


def config(warmup: int, steps: int) -> TrainConfig:
    return TrainConfig(
        batch_size=1, gradient_accumulation=1, seq_length=1, max_steps=steps, warmup_steps=warmup, lr=2.0
    )


def test_the_first_step_already_learns() -> None:
    assert lr_at(0, config(10, 100)) == 0.2


def test_warm_up_is_a_straight_line_to_the_peak() -> None:
    assert [lr_at(step, config(4, 100)) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_the_cosine_is_at_half_the_peak_half_way_and_at_zero_in_the_end() -> None:
    assert lr_at(60, config(20, 100)) == pytest.approx(1.0)
    assert lr_at(100, config(20, 100)) == 0
    assert lr_at(1000, config(20, 100)) == 0


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert lr_at(0, config(0, 100)) == 2.0


def test_a_run_that_ends_inside_its_warm_up_only_climbs() -> None:
    rates = [lr_at(step, config(1000, 10)) for step in range(10)]
    assert rates == sorted(rates)
    assert rates[0] > 0


@given(st.integers(0, 300), st.integers(1, 300), st.data())
def test_every_step_of_a_run_has_a_rate_between_zero_and_the_peak(warmup: int, steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < lr_at(step, config(warmup, steps)) <= 2.0
