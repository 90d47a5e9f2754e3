"""One optimizer step: accumulation, memory, noise, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.config import TrainConfig, model_config
from kssm.device import Compute
from kssm.errors import KssmError, Stopped
from kssm.model_blocks import KSSM
from kssm.models import build
from kssm.step import Stepper, StepResult, allocate_state, noise_seed

V, ROWS, S = 13, 8, 6
CPU = Compute(torch.device("cpu"))


def train_config(micro_batch: int = ROWS, **changes: object) -> TrainConfig:
    facts = {"max_steps": 20, "warmup_steps": 4, "lr": 1e-2, "seq_length": S, **changes}
    return TrainConfig(batch_size=micro_batch, gradient_accumulation=ROWS // micro_batch, **facts)  # type: ignore[arg-type]


def small_model(name: str = "v3", **changes: object) -> KSSM:
    facts = {"hidden": 8, "layers": 2, "oscillators": 4, "positions": S, **changes}
    return build(model_config(name, "tiny", V, **facts), seed=0)  # type: ignore[arg-type]


def batch(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, V, (ROWS, S + 1)).astype(np.uint16)


def stepper(model: KSSM, config: TrainConfig | None = None, log: Callable[[str], None] = print) -> Stepper:
    return Stepper(model, config or train_config(), CPU, batch, log)


def weights(model: KSSM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def without_time(result: StepResult) -> tuple[object, ...]:
    return tuple(getattr(result, name) for name in StepResult.__slots__ if name != "seconds")


def test_a_step_tells_all_its_numbers() -> None:
    result = stepper(small_model()).step(0)
    assert result.loss == pytest.approx(result.ce + 0.5 * result.reg, abs=1e-6)
    assert result.ce == pytest.approx(math.log(V), abs=0.2)
    assert result.order_parameter == pytest.approx(sum(result.order_parameter_layers) / 2)
    assert len(result.order_parameter_layers) == 2
    assert result.u is not None
    assert 0.1 <= result.u <= 10
    assert result.order_parameter_std >= 0
    assert result.tokens == ROWS * S
    assert result.lr == pytest.approx(1e-2 / 4)
    assert result.grad_norm > 0
    assert result.seconds > 0


def test_v2_has_no_u_and_no_regulariser() -> None:
    result = stepper(small_model("v2")).step(0)
    assert (result.u, result.reg) == (None, 0)


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_steps_teach_which_token_follows_which(name: str) -> None:
    counting = (np.arange(ROWS)[:, None] + np.arange(S + 1)) % V
    training = Stepper(small_model(name), train_config(max_steps=40, lr=3e-2), CPU, lambda _step: counting, print)
    losses = [training.step(step).ce for step in range(40)]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulated_micro_batches_equal_one_large_batch(micro_batch: int) -> None:
    whole, parts = (small_model("v2", dropout=0.0).double() for _ in range(2))
    large = stepper(whole).step(0)
    small = stepper(parts, train_config(micro_batch)).step(0)
    assert small.ce == pytest.approx(large.ce, rel=1e-12)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-10)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-8, rtol=0)


def test_an_uneven_last_micro_batch_counts_by_its_rows() -> None:
    whole, parts = (small_model("v2", dropout=0.0).double() for _ in range(2))
    uneven = stepper(parts)
    uneven.micro_batch = 3
    assert uneven.step(0).grad_norm == pytest.approx(stepper(whole).step(0).grad_norm, rel=1e-10)


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_a_step_repeated_from_the_same_weights_is_the_same_to_the_bit(name: str) -> None:
    one, two = small_model(name), small_model(name)
    first = list(run(stepper(one, train_config(4)), 3))
    torch.randn(100)  # global random state is no part of a step
    second = list(run(stepper(two, train_config(4)), 3))
    assert [without_time(result) for result in first] == [without_time(result) for result in second]
    assert same(one.state_dict(), two.state_dict())


def test_a_stop_is_heard_between_micro_batches_and_leaves_the_weights_alone() -> None:
    model = small_model()
    before = weights(model)
    asked: list[int] = []
    training = Stepper(
        model, train_config(2), CPU, batch, print, should_stop=lambda: len(asked) > 1 or asked.append(1) or False
    )
    with pytest.raises(Stopped):
        training.step(0)
    assert same(before, weights(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_who_reads_the_weights_beside_a_step_is_waited_for_before_they_change() -> None:
    model = small_model()
    before, seen = weights(model), []

    def read() -> None:
        seen.append(same(before, weights(model)))
        assert all(parameter.grad is not None for parameter in model.blocks.parameters())

    training = Stepper(model, train_config(2), CPU, batch, print, before_update=read)
    training.step(0)
    assert seen == [True]
    assert not same(before, weights(model))


def test_a_step_that_is_left_before_its_update_changes_nothing() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    model = small_model()
    training = Stepper(model, train_config(), CPU, batch, print, before_update=leave)
    before, state = weights(model), copy.deepcopy(training.optimizer.state_dict())
    with pytest.raises(KeyboardInterrupt):
        training.step(0)
    assert same(before, weights(model))
    assert training.optimizer.state_dict() == state


def test_allocating_the_optimizers_state_beforehand_changes_no_bit() -> None:
    plain, prepared = stepper(small_model()), stepper(small_model())
    before = weights(prepared.model)
    allocate_state(prepared.optimizer)
    assert same(before, weights(prepared.model))
    assert [without_time(plain.step(n)) for n in range(3)] == [without_time(prepared.step(n)) for n in range(3)]
    assert same(weights(plain.model), weights(prepared.model))


def run(training: Stepper, steps: int) -> Iterator[StepResult]:
    for step in range(steps):
        yield training.step(step)


def test_a_run_continued_from_saved_state_goes_on_to_the_bit() -> None:
    through = stepper(small_model())
    list(run(through, 2))
    continued = stepper(small_model())
    continued.model.load_state_dict(weights(through.model))
    continued.optimizer.load_state_dict(copy.deepcopy(through.optimizer.state_dict()))
    assert without_time(continued.step(2)) == without_time(through.step(2))
    assert same(continued.model.state_dict(), through.model.state_dict())


def test_noise_differs_between_steps_micro_batches_and_seeds() -> None:
    seeds = {noise_seed(seed, step, micro) for seed in range(5) for step in range(20) for micro in range(5)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    once = batch(0)
    frozen = Stepper(small_model(), train_config(lr=1e-30, weight_decay=0.0), CPU, lambda _step: once, print)
    assert frozen.step(0).ce != frozen.step(1).ce


def test_the_seed_of_noise_is_frozen_for_runs_that_resume() -> None:
    assert noise_seed(1337, 0, 0) == 8_962_571_099_527_232_837


def test_decay_touches_matrices_alone() -> None:
    decayed, others = stepper(small_model()).optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert others["weight_decay"] == 0
    assert all(parameter.ndim < 2 for parameter in others["params"])


def test_the_gradient_is_clipped_but_told_as_it_was() -> None:
    training = stepper(small_model(), train_config(clip=1e-3))
    assert training.step(0).grad_norm > 1e-3
    clipped = torch.cat([parameter.grad.flatten() for parameter in training.model.parameters()]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def memory_for(model: KSSM, rows: int, error: Callable[[], BaseException]) -> None:
    """From now on a forward pass of more than so many rows fails, half way through the model."""

    def refuse(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > rows:
            raise error()

    model.blocks[1].register_forward_pre_hook(refuse)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda: RuntimeError("MPS backend out of memory (MPS ...)"), MemoryError]
)
def test_full_memory_halves_the_micro_batch_and_keeps_the_step(error: Callable[[], BaseException]) -> None:
    roomy, tight = (small_model("v2", dropout=0.0).double() for _ in range(2))
    memory_for(tight, 2, error)
    lines: list[str] = []
    training = stepper(tight, log=lines.append)
    expected, result = stepper(roomy).step(0), training.step(0)
    assert training.micro_batch == 2
    assert [line.split(";")[1] for line in lines] == [
        " going on with 4, the effective batch stays 8",
        " going on with 2, the effective batch stays 8",
    ]
    assert result.ce == pytest.approx(expected.ce, rel=1e-12)
    for name, value in roomy.state_dict().items():
        torch.testing.assert_close(tight.state_dict()[name], value, atol=1e-8, rtol=0)
    training.step(1)
    assert len(lines) == 2


def test_memory_that_runs_out_in_a_late_micro_batch_leaves_no_gradient_behind() -> None:
    roomy, tight = (small_model("v2", dropout=0.0).double() for _ in range(2))
    calls = iter(range(100))

    def refuse_once(*_args: object) -> None:
        if next(calls) == 1:
            raise torch.OutOfMemoryError

    tight.blocks[0].register_forward_pre_hook(refuse_once)
    expected = stepper(roomy, train_config(2)).step(0)
    assert stepper(tight, train_config(4)).step(0).grad_norm == pytest.approx(expected.grad_norm, rel=1e-12)


def test_v3_after_full_memory_stays_near_the_large_batch() -> None:
    roomy, tight = small_model(), small_model()
    memory_for(tight, 4, MemoryError)
    assert stepper(tight).step(0).ce == pytest.approx(stepper(roomy).step(0).ce, abs=0.05)


def test_one_sequence_that_does_not_fit_ends_in_a_clear_error() -> None:
    model = small_model()
    memory_for(model, 0, MemoryError)
    before = weights(model)
    with pytest.raises(KssmError, match="step 3: out of memory with one sequence of 6 tokens at a time") as refused:
        stepper(model).step(3)
    assert "--size" in refused.value.next_step
    assert same(before, model.state_dict())


def test_other_errors_pass_through() -> None:
    model = small_model()
    memory_for(model, 0, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        stepper(model).step(0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(poison: float) -> None:
    model = small_model()
    model.norm.bias.data[0] = poison
    before = weights(model)
    training = stepper(model)
    with pytest.raises(KssmError, match=r"step 5: loss nan, gradient norm nan; the weights are as they were") as told:
        training.step(5)
    assert "--fresh" in told.value.next_step  # the rate of a run that goes on is the one that it began with
    assert all(torch.equal(before[name].nan_to_num(), value.nan_to_num()) for name, value in model.state_dict().items())
    assert not training.optimizer.state
