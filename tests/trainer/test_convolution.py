"""The causal convolution, each form that runs here, against float64 and torch's own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from kssm import convolution
from kssm.convolution import NativeConvolution, PortableConvolution, causal_convolution
from kssm.trial import Unavailable


def forms_until_refused() -> Iterator[NativeConvolution]:
    with contextlib.suppress(Unavailable):
        for form in itertools.count():
            yield NativeConvolution(form)


FORMS = {made.name: made for made in forms_until_refused()}
SIZES = [(3, 9, 40, 4), (2, 64, 128, 4), (1, 1, 5, 4), (2, 2, 7, 4), (2, 6, 3, 1), (3, 5, 17, 2), (1, 3, 33, 8)]


@pytest.fixture(params=["portable", *FORMS])
def _made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_on_cpu", lambda: FORMS.get(request.param, PortableConvolution()))


def inputs(B: int, S: int, D: int, W: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(B + S + D + W)
    return tuple(torch.randn(*size, generator=draw) for size in ((B, S, D), (W, D), (B, W - 1, D)))


def by_torch(x_BSD: Tensor, weight_WD: Tensor, tail_BTD: Tensor) -> Tensor:
    seen_BDX = torch.cat((tail_BTD, x_BSD), 1).transpose(1, 2)
    return F.conv1d(seen_BDX, weight_WD.T[:, None], groups=weight_WD.shape[1]).transpose(1, 2)


def both_ways(convolve, x: Tensor, weight: Tensor, tail: Tensor) -> tuple[Tensor, ...]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = convolve(x, weight, tail)
    d_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, (x, weight), d_y)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.usefixtures("_made")
def test_values_and_gradients_are_those_of_torch_in_float64(sizes: tuple[int, ...]) -> None:
    given = inputs(*sizes)
    got = both_ways(causal_convolution, *given)
    right = both_ways(by_torch, *(tensor.double() for tensor in given))
    for each, truth in zip(got, right, strict=True):
        torch.testing.assert_close(each.double(), truth, atol=2e-6 * float(truth.abs().max()), rtol=0)


def test_float64_passes_gradcheck() -> None:
    x, weight, tail = (tensor.double() for tensor in inputs(2, 5, 3, 4))
    assert torch.autograd.gradcheck(
        lambda x, weight: causal_convolution(x, weight, tail), (x.requires_grad_(), weight.requires_grad_())
    )


@pytest.mark.parametrize("cut", [1, 2, 5, 19])
@pytest.mark.usefixtures("_made")
def test_going_on_from_a_tail_gives_the_very_bits_of_going_through_at_once(cut: int) -> None:
    x, weight, tail = inputs(3, 20, 37, 4)
    whole = causal_convolution(x, weight, tail)
    first = causal_convolution(x[:, :cut], weight, tail)
    rest = causal_convolution(x[:, cut:], weight, torch.cat((tail, x[:, :cut]), 1)[:, -3:])
    assert torch.equal(whole, torch.cat((first, rest), 1))


@pytest.mark.usefixtures("_made")
def test_a_later_input_changes_nothing_earlier() -> None:
    x, weight, tail = inputs(2, 12, 24, 4)
    changed = x.clone()
    changed[:, 7] += 1
    before, after = causal_convolution(x, weight, tail), causal_convolution(changed, weight, tail)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:11], after[:, 7:11])
    assert torch.equal(before[:, 11:], after[:, 11:])


@pytest.mark.usefixtures("_made")
def test_the_outcome_does_not_depend_on_the_number_of_threads() -> None:
    given, outcomes, before = inputs(48, 64, 128, 4), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(both_ways(causal_convolution, *given))
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        assert torch.equal(outcomes[0][0], other[0])
        assert torch.equal(outcomes[0][1], other[1])


@pytest.mark.usefixtures("_made")
def test_no_sequence_at_all_is_no_error() -> None:
    y, d_x, d_weight = both_ways(causal_convolution, *inputs(0, 5, 8, 4))
    assert y.shape == d_x.shape == (0, 5, 8)
    assert not d_weight.any()


@pytest.mark.skipif(not FORMS, reason="the native kernel was not built")
def test_float32_on_the_cpu_is_computed_in_c() -> None:
    convolution._on_cpu.cache_clear()
    assert convolution._on_cpu().name == next(iter(FORMS))


def test_where_no_kernel_was_built_plain_torch_takes_over(monkeypatch) -> None:
    def missing() -> NativeConvolution:
        raise Unavailable("the native kernel was not built")

    monkeypatch.setattr(convolution, "NativeConvolution", missing)
    convolution._on_cpu.cache_clear()
    try:
        assert isinstance(convolution._on_cpu(), PortableConvolution)
    finally:
        convolution._on_cpu.cache_clear()
